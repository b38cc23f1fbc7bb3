/* The hot loops, for one instruction set. Included once for each, with these defined:
 *
 * PATH(name)             the name of a function for this instruction set
 * TARGET                 the attribute that allows its instructions
 * LANES                  32-bit lanes of a vector, TILE % (2 * LANES) == 0
 * ROWS                   4 or 8: half as many as there are sums that fit the registers
 * VEC, PAIRS, WEIGHTS    LANES int32; LANES pairs of int16; a pair of int16 for every lane
 * splat(x)               VEC of one int32
 * load_pairs(p)          PAIRS from int16 p[2 * LANES]
 * load_weights(p)        WEIGHTS from a pair of int16 in the int32 *p
 * multiply_add(s, x, w)  s + x[0] * w[0] + x[1] * w[1] in each lane
 * unit(s)                s >> 10, then within 0..MAX_VALUE
 * gather(p, a, b)        int16 a[LANES] and b[LANES] to int16 p[2 * LANES], interleaved
 * store(p, s)            VEC to int32 p[LANES]
 * store_pairs(p, a, b)   lanes of two VEC within int16 to int16 p[2 * LANES], interleaved
 */

enum { PATH(AT_ONCE) = 2 * LANES };

/* Add the products of `pairs` inputs x, int16 [pairs, AT_ONCE, 2], and of the first weights of int32
 * [pairs, stride], to sums [rows][2]. */
TARGET static ALWAYS_INLINE void PATH(dots)(VEC sums[][2], const int rows, const int16_t *x,
                                            int pairs, const int32_t *weights, int stride) {
    for (int pair = 0; pair < pairs; pair++) {
        const PAIRS left = load_pairs(x), right = load_pairs(x + 2 * LANES);
        UNROLL for (int row = 0; row < rows; row++) {
            const WEIGHTS weight = load_weights(weights + row);
            sums[row][0] = multiply_add(sums[row][0], left, weight);
            sums[row][1] = multiply_add(sums[row][1], right, weight);
        }
        x += 4 * LANES;
        weights += stride;
    }
}

/* Units of a layer: inputs int16 [pairs, AT_ONCE, 2] -> units int16 [n / 2, AT_ONCE, 2], n a multiple
 * of 8. */
TARGET static void PATH(layer)(const int16_t *x, int pairs, const int32_t *weights,
                               const int32_t *bias, int n, int16_t *units) {
    for (int first = 0; first < n; first += ROWS) {
        VEC sums[ROWS][2];
        UNROLL for (int row = 0; row < ROWS; row++)
            sums[row][0] = sums[row][1] = splat(bias[first + row]);
        PATH(dots)(sums, ROWS, x, pairs, weights + first / 8 * 8 * pairs + first % 8, 8);
        UNROLL for (int row = 0; row < ROWS; row += 2) {
            UNROLL for (int half = 0; half < 2; half++)
                store_pairs(units + 2 * LANES * half, unit(sums[row][half]),
                            unit(sums[row + 1][half]));
            units += 4 * LANES;
        }
    }
}

/* Run a network at values[starts[i] + 0..count), i its inputs; reads up to AT_ONCE - 1 values more.
 * outputs: int32 [3, stride]; count rounded up to a multiple of AT_ONCE is written of each row. */
TARGET static void PATH(run_network)(const NetworkCall *call, const int16_t *values, int64_t count,
                                     int32_t *outputs, int64_t stride) {
    const Network *network = call->network;
    const int n_hidden = 2 * network->hidden_pairs, n_middle = 2 * network->middle_pairs;
    int16_t tile[3 * MAX_INPUTS / 2 * 4 * LANES]; /* inputs, hidden and middle units */
    int16_t *hidden = tile + 4 * LANES * network->input_pairs;
    int16_t *middle = hidden + 2 * LANES * n_hidden;
    const int pairs = network->input_pairs + network->hidden_pairs + network->middle_pairs;
    for (int64_t start = 0; start < count; start += PATH(AT_ONCE)) {
        for (int pair = 0; pair < network->input_pairs; pair++) {
            const int second = 2 * pair + 1 < network->inputs ? 2 * pair + 1 : 2 * pair;
            const int16_t *a = values + call->starts[2 * pair] + start;
            const int16_t *b = values + call->starts[second] + start;
            int16_t *x = tile + 4 * LANES * pair;
            gather(x, a, b);
            gather(x + 2 * LANES, a + LANES, b + LANES);
        }
        PATH(layer)(tile, network->input_pairs, call->hidden_weights, call->bias, n_hidden, hidden);
        PATH(layer)(hidden, network->hidden_pairs, call->middle_weights, call->bias + n_hidden,
                    n_middle, middle);
        VEC sums[4][2];
        for (int row = 0; row < 4; row++)
            sums[row][0] = sums[row][1] = splat(call->bias[n_hidden + n_middle + row]);
        PATH(dots)(sums, 4, tile, pairs, call->output_weights, 4);
        for (int row = 0; row < 3; row++) {
            store(outputs + row * stride + start, sums[row][0]);
            store(outputs + row * stride + start + LANES, sums[row][1]);
        }
    }
}

/* Viterbi's algorithm, forwards: fills `second` and leaves the last totals in totals[0]. */
TARGET static void PATH(run_search)(Search *search) {
    const float forbidden = 1e9f;
    for (int state = 0; state < STATES; state++)
        for (int path = 0; path < PATHS; path++)
            search->totals[0][state][path] = state ? forbidden : 0.0f;
    for (int place = 0; place < PLANES; place++) {
        float costs[4][PATHS];
        const float *targets = search->targets[place], *weights = search->weights[place];
        int32_t *second = search->second[place];
        for (int path = 0; path < PATHS; path++)
            second[path] = 0;
        for (int branch = 0; branch < 4; branch++)
            for (int path = 0; path < PATHS; path++) {
                const float error = to_nearest(targets[path] - OFFSETS[branch]);
                const float cost = error * error * weights[path];
                costs[branch][path] = branch % 2 && weights[path] == 0.0f ? forbidden : cost;
            }
        float(*before)[PATHS] = search->totals[place % 2];
        float(*after)[PATHS] = search->totals[1 - place % 2];
        for (int state = 0; state < STATES; state++) {
            const float *total0 = before[STATES_BEFORE[0][state]];
            const float *total1 = before[STATES_BEFORE[1][state]];
            const float *cost0 = costs[BRANCHES[0][state]];
            const float *cost1 = costs[BRANCHES[1][state]];
            for (int path = 0; path < PATHS; path++) {
                const float first = total0[path] + cost0[path], other = total1[path] + cost1[path];
                after[state][path] = other < first ? other : first;
                second[path] |= (other < first ? 1 : 0) << state;
            }
        }
    }
}
