/* The networks of entropy coding and the trellis search; paths.h tells what is defined here. */

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
                store_units(units + 2 * LANES * half, sums[row][half], sums[row + 1][half]);
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
        VEC sums[3][2];
        UNROLL for (int row = 0; row < 3; row++)
            sums[row][0] = sums[row][1] = splat(call->bias[n_hidden + n_middle + row]);
        PATH(dots)(sums, 3, tile, pairs, call->output_weights, 4);
        for (int row = 0; row < 3; row++) {
            store(outputs + row * stride + start, sums[row][0]);
            store(outputs + row * stride + start + LANES, sums[row][1]);
        }
    }
}

/* Round latents to symbols. */
TARGET static void PATH(round_latents)(const float *latents, int64_t count, float per_step,
                                       int16_t *symbols) {
    for (int64_t i = 0; i < count; i++) {
        const float symbol = nearest_integer(in_steps(latents[i], per_step));
        symbols[i] = (int16_t)clamp32((int32_t)symbol, -LIMIT, LIMIT);
    }
}

/* Viterbi's algorithm, forwards: fills `second` and leaves the last totals in totals[0], as places are even. */
TARGET static void PATH(run_search)(Search *search) {
    const float forbidden = 1e9f;
    for (int state = 0; state < STATES; state++)
        for (int path = 0; path < PATHS; path++)
            search->totals[0][state][path] = state ? forbidden : 0.0f;
    for (int place = 0; place < search->places; place++) {
        float costs[4][PATHS];
        const float *targets = search->targets[place], *weights = search->weights[place];
        int32_t *second = search->second[place];
        for (int path = 0; path < PATHS; path++)
            second[path] = 0;
        for (int branch = 0; branch < 4; branch++)
            for (int path = 0; path < PATHS; path++) {
                const float error = from_nearest_even(targets[path] - OFFSETS[branch]);
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

/* sums[lane] += factor * x[lane] */
TARGET static ALWAYS_INLINE void PATH(add_times)(float *sums, float factor, const float *x) {
    for (int lane = 0; lane < GRADIENT_TILE; lane++)
        sums[lane] += factor * x[lane];
}

/* Units of a layer in floats, in which their sums are exact: [n_inputs] -> [n]. */
TARGET static void PATH(float_layer)(float (*units)[GRADIENT_TILE], int n, const int32_t *weights,
                                     const int32_t *bias, int pairs,
                                     const float (*inputs)[GRADIENT_TILE], int n_inputs) {
    for (int unit = 0; unit < n; unit++) {
        for (int lane = 0; lane < GRADIENT_TILE; lane++)
            units[unit][lane] = (float)bias[unit];
        for (int input = 0; input < n_inputs; input++)
            PATH(add_times)(units[unit], weight_of(weights, 8, pairs, unit, input), inputs[input]);
        for (int lane = 0; lane < GRADIENT_TILE; lane++) {
            const int32_t sum = (int32_t)units[unit][lane] >> 10;
            units[unit][lane] = (float)(sum < 0 ? 0 : sum > MAX_VALUE ? MAX_VALUE : sum);
        }
    }
}

/* Backpropagate through a layer: the gradient by its units, from those by its `above` outputs; it is
 * that of the sums before saturation. `by_units` [n] begins as what other layers add. */
TARGET static void PATH(float_back)(float (*by_units)[GRADIENT_TILE], int n,
                                    const int32_t *weights, int pairs,
                                    const float (*by_above)[GRADIENT_TILE], int above) {
    for (int unit = 0; unit < n; unit++)
        for (int other = 0; other < above; other++)
            PATH(add_times)(by_units[unit], weight_of(weights, 8, pairs, other, unit) / 1024.0f,
                            by_above[other]);
}

/* Backpropagate a network at GRADIENT_TILE places from values[starts[i] + at]: the gradient by its
 * outputs [3, GRADIENT_TILE] is added as that by its inputs to gradient, which is as the values. */
TARGET static void PATH(add_gradient)(const NetworkCall *call, const int16_t *values, int64_t at,
                                      const float by_output[3][GRADIENT_TILE], float *gradient) {
    const Network *network = call->network;
    const int n_inputs = network->inputs, n_hidden = network->hidden, n_middle = network->middle;
    float inputs[MAX_INPUTS][GRADIENT_TILE], by_inputs[MAX_INPUTS][GRADIENT_TILE] = {{0}};
    float hidden[MAX_INPUTS][GRADIENT_TILE], by_hidden[MAX_INPUTS][GRADIENT_TILE] = {{0}};
    float middle[MAX_INPUTS][GRADIENT_TILE], by_middle[MAX_INPUTS][GRADIENT_TILE] = {{0}};
    for (int input = 0; input < n_inputs; input++)
        for (int lane = 0; lane < GRADIENT_TILE; lane++)
            inputs[input][lane] = (float)values[call->starts[input] + at + lane];
    PATH(float_layer)(hidden, n_hidden, call->hidden_weights, call->bias, network->input_pairs,
                      (const float(*)[GRADIENT_TILE])inputs, n_inputs);
    PATH(float_layer)(middle, n_middle, call->middle_weights,
                      call->bias + 2 * network->hidden_pairs, network->hidden_pairs,
                      (const float(*)[GRADIENT_TILE])hidden, n_hidden);
    const int first_hidden = 2 * network->input_pairs;
    const int first_middle = first_hidden + 2 * network->hidden_pairs;
    for (int row = 0; row < 3; row++) {
        const int32_t *weights = call->output_weights;
        for (int i = 0; i < n_inputs; i++)
            PATH(add_times)(by_inputs[i], weight_of(weights, 4, 0, row, i), by_output[row]);
        for (int i = 0; i < n_hidden; i++)
            PATH(add_times)(by_hidden[i], weight_of(weights, 4, 0, row, first_hidden + i),
                            by_output[row]);
        for (int i = 0; i < n_middle; i++)
            PATH(add_times)(by_middle[i], weight_of(weights, 4, 0, row, first_middle + i),
                            by_output[row]);
    }
    for (int i = 0; i < n_middle; i++)
        for (int lane = 0; lane < GRADIENT_TILE; lane++)
            by_middle[i][lane] *= middle[i][lane] > 0 && middle[i][lane] < MAX_VALUE ? 1.0f : 0.0f;
    PATH(float_back)(by_hidden, n_hidden, call->middle_weights, network->hidden_pairs,
                     (const float(*)[GRADIENT_TILE])by_middle, n_middle);
    for (int i = 0; i < n_hidden; i++)
        for (int lane = 0; lane < GRADIENT_TILE; lane++)
            by_hidden[i][lane] *= hidden[i][lane] > 0 && hidden[i][lane] < MAX_VALUE ? 1.0f : 0.0f;
    PATH(float_back)(by_inputs, n_inputs, call->hidden_weights, network->input_pairs,
                     (const float(*)[GRADIENT_TILE])by_hidden, n_hidden);
    for (int i = 0; i < n_inputs; i++)
        PATH(add_times)(gradient + call->starts[i] + at, 1.0f, by_inputs[i]);
}
