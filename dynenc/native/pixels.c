/* Latents to pixels: the layers of the integer decoder, row by row, so that memory holds a few rows
 * of each layer. */
#include "pixels.h"

enum { RESIDUAL_ROWS = 2, ACTIVATION_ROWS = 3 };

/* One dimension of what a layer reads: the image, or a part of it with what it depends on. */
typedef struct {
    int32_t start, count;       /* in the image, at the layer's size */
    int32_t at_start, at_end;   /* whether the image begins and ends there */
} Side;

/* The rows of a layer. */
typedef struct {
    const Layer *layer;
    Side rows, columns;         /* of its inputs */
    int32_t large, small;       /* tiles of a row that it computes */
    int64_t stride;             /* channels of a row with spare pixels */
    int16_t *residuals;         /* [RESIDUAL_ROWS, stride] */
    uint8_t *activations;       /* [ACTIVATION_ROWS, stride] */
} Rows;

typedef struct {
    dynenc_pixels_call *call;
    const PixelDecoder *decoder;
    PixelKernels kernels;
    int32_t first_row;          /* of the call's pixels, in the part */
    Rows rows[MAX_LAYERS];
    Side latent_rows, latent_columns;
    int32_t first_large, first_small;
    int32_t channels;           /* of the latents */
    int32_t bias[MAX_WIDTH];    /* of the first convolution, for the step */
    int16_t *latents;           /* 3 rows [columns, channels] with repeated edges */
    uint8_t *hidden, *gated;    /* of a row of any layer */
    uint8_t *pixels;            /* [columns, 12] */
    int64_t size;               /* of the workspace */
} Image;

/* What a 3x3 convolution leaves of a side: neighbours that are missing at the edges of the image
 * are repeated, and elsewhere nothing is computed without them. */
static Side convolved(Side side) {
    side.start += !side.at_start;
    side.count -= !side.at_start + !side.at_end;
    return side;
}

static Side doubled(Side side) {
    side.start *= 2;
    side.count *= 2;
    return side;
}

/* The fewest tiles that cover `pixels`, and of these those of fewest pixels. */
static void cover(const PixelKernels *kernels, int32_t pixels, int32_t *large, int32_t *small) {
    int32_t best = INT32_MAX;
    for (int32_t n = 0; n <= kernels->large; n++) {
        const int32_t left = pixels - n * kernels->small;
        const int32_t others = left > 0 ? (left + kernels->large - 1) / kernels->large : 0;
        const int32_t all = n * kernels->small + others * kernels->large;
        if (all < best) {
            best = all;
            *small = n;
            *large = others;
        }
        if (left <= 0)
            break;
    }
}

/* Latents around some, in one dimension, that the pixels of these depend on. */
static int32_t reach(const Image *image) {
    int32_t needed = 0;
    for (int32_t i = image->decoder->count - 1; i >= 0; i--)
        needed = image->rows[i].layer->kind == ENLARGE ? (needed + 1) / 2 : needed + 1;
    return needed + 1;
}

static Side window(int32_t start, int32_t count, int32_t patch, int32_t around, int32_t length) {
    const int32_t first = start / patch - around;
    const int32_t end = (start + count + patch - 1) / patch + around;
    Side side = {first < 0 ? 0 : first, end > length ? length : end, first <= 0, end >= length};
    side.count -= side.start;
    return side;
}

/* Sizes of all rows, and the rows themselves if there is memory. */
static void plan(Image *image, char *memory) {
    const dynenc_pixels_call *call = image->call;
    const int32_t around = reach(image), patch = image->decoder->side;
    Side rows = window(call->top, call->rows, patch, around, call->height);
    Side columns = window(call->left, call->columns, patch, around, call->width);
    image->latent_rows = rows;
    image->latent_columns = columns;
    int64_t size = 0, most = 0;
    image->latents =
        carve(memory, &size, 2LL * 3 * (columns.count + SPARE) * image->channels);
    rows = convolved(rows);
    columns = convolved(columns);
    for (int32_t i = 0; i < image->decoder->count; i++) {
        Rows *own = &image->rows[i];
        const Layer *layer = own->layer;
        *own = (Rows){.layer = layer, .rows = rows, .columns = columns};
        own->stride = (int64_t)(columns.count + SPARE) * layer->channels;
        own->residuals = carve(memory, &size, 2 * RESIDUAL_ROWS * own->stride);
        own->activations = carve(memory, &size, ACTIVATION_ROWS * own->stride);
        most = own->stride > most ? own->stride : most;
        if (layer->kind != ENLARGE) {
            rows = convolved(rows);
            columns = convolved(columns);
        }
        cover(&image->kernels, columns.count, &own->large, &own->small);
        if (layer->kind == ENLARGE) {
            rows = doubled(rows);
            columns = doubled(columns);
        }
    }
    image->hidden = carve(memory, &size, most);
    image->gated = carve(memory, &size, most);
    image->pixels = carve(memory, &size, 12LL * (columns.count + SPARE));
    image->size = size;
}

static void push(Image *image, int32_t index, int32_t row);

static int16_t *residual_row(const Rows *rows, int32_t row) {
    return rows->residuals + row % RESIDUAL_ROWS * rows->stride;
}

static uint8_t *activation_row(const Rows *rows, int32_t row) {
    return rows->activations + row % ACTIVATION_ROWS * rows->stride;
}

/* A product of a layer at a row, whose activations by tap are still to be named. */
static ProductCall product_call(const Image *image, const Rows *rows, const Product *product,
                                int32_t use, void *to) {
    return (ProductCall){
        .decoder = image->decoder, .product = product, .use = use,
        .outputs = (product->outputs + GROUP - 1) / GROUP * GROUP,
        .large = rows->large, .small = rows->small, .to = to,
    };
}

/* The 3x3 neighbourhoods of a row. */
static void name_taps(const Rows *rows, int32_t row, const uint8_t *taps[MAX_TAPS]) {
    for (int32_t down = 0; down < 3; down++) {
        int32_t from = row + down - 1;
        from = from < 0 ? 0 : from >= rows->rows.count ? rows->rows.count - 1 : from;
        for (int32_t right = 0; right < 3; right++)
            taps[3 * down + right] = activation_row(rows, from) + right * rows->layer->channels;
    }
}

/* One row of a block, from the activations around it. */
static void run_block(Image *image, int32_t index, int32_t row) {
    const Rows *rows = &image->rows[index];
    const Layer *layer = rows->layer;
    const int32_t out = row - !rows->rows.at_start;
    ProductCall call =
        product_call(image, rows, &layer->spatial, TO_ACTIVATIONS, image->hidden);
    name_taps(rows, row, call.taps);
    image->kernels.multiply(&call);
    call = product_call(image, rows, &layer->gate, TO_GATED, image->gated);
    call.first_output = call.outputs = layer->channels;
    call.taps[0] = image->hidden;
    call.limit = PART(image->decoder, int16_t, layer->limit_at);
    image->kernels.multiply(&call);
    call = product_call(image, rows, &layer->mix, TO_SUM,
                        residual_row(&image->rows[index + 1], out));
    call.taps[0] = image->gated;
    call.residual = residual_row(rows, row) + !rows->columns.at_start * layer->channels;
    image->kernels.multiply(&call);
    push(image, index + 1, out);
}

/* One row becomes two of the next size. */
static void enlarge(Image *image, int32_t index, int32_t row) {
    const Rows *rows = &image->rows[index];
    const Product *product = &rows->layer->spatial;
    for (int32_t down = 0; down < 2; down++) {
        const int32_t out = 2 * row + down;
        ProductCall call = product_call(image, rows, product, TO_RESIDUAL,
                                        residual_row(&image->rows[index + 1], out));
        call.outputs = product->outputs / 2;
        call.first_output = down * call.outputs;
        call.taps[0] = activation_row(rows, row);
        image->kernels.multiply(&call);
        push(image, index + 1, out);
    }
}

/* Two rows of pixels; what is wanted of them goes to the caller. */
static void write_pixels(Image *image, int32_t index, int32_t row) {
    const Rows *rows = &image->rows[index];
    dynenc_pixels_call *call = image->call;
    ProductCall product =
        product_call(image, rows, &rows->layer->spatial, TO_PIXELS, image->pixels);
    name_taps(rows, row, product.taps);
    image->kernels.multiply(&product);
    const int32_t first = 2 * convolved(rows->columns).start;
    for (int32_t down = 0; down < 2; down++) {
        const int32_t y = 2 * (rows->rows.start + row) + down - call->top;
        if (y < image->first_row || y >= call->rows || y - image->first_row >= call->room)
            continue;
        uint8_t *to = call->pixels + (y - image->first_row) * call->stride;
        for (int32_t x = 0; x < call->columns; x++) {
            const int32_t from = call->left + x - first;
            const int32_t place = 12 * (from / 2) + 3 * (2 * down + from % 2);
            memcpy(to + 3 * x, image->pixels + place, 3);
        }
        call->done = y + 1;
    }
}

static void run_row(Image *image, int32_t index, int32_t row) {
    if (image->rows[index].layer->kind == BLOCK)
        run_block(image, index, row);
    else
        write_pixels(image, index, row);
}

/* Take the next row of a layer's residuals, and run what has become possible. */
static void push(Image *image, int32_t index, int32_t row) {
    const Rows *rows = &image->rows[index];
    const Layer *layer = rows->layer;
    const int32_t channels = layer->channels, width = rows->columns.count;
    const int32_t begin = layer->kind != ENLARGE && rows->columns.at_start;
    uint8_t *activations = activation_row(rows, row), *pixels = activations + begin * channels;
    image->kernels.activate(image->decoder, &layer->input, channels, width,
                            residual_row(rows, row), pixels);
    if (layer->kind == ENLARGE) {
        enlarge(image, index, row);
        return;
    }
    if (begin)
        memcpy(activations, pixels, (size_t)channels);
    memcpy(pixels + (int64_t)width * channels, pixels + (int64_t)(width - 1) * channels,
           (size_t)channels);
    if (row > 0 && (row > 1 || rows->rows.at_start))
        run_row(image, index, row - 1);
}

/* A row of latents of the window, with repeated edges. */
static void load_latents(const Image *image, int32_t row, int16_t *to) {
    const dynenc_pixels_call *call = image->call;
    const Side *columns = &image->latent_columns;
    const int64_t plane = (int64_t)call->height * call->width;
    const int64_t line = (int64_t)(image->latent_rows.start + row) * call->width + columns->start;
    const int32_t begin = columns->at_start, channels = image->channels;
    for (int32_t x = 0; x < begin + columns->count + columns->at_end; x++) {
        int32_t from = x - begin;
        from = from < 0 ? 0 : from >= columns->count ? columns->count - 1 : from;
        for (int32_t channel = 0; channel < channels; channel++)
            to[channels * x + channel] = call->latents[channel * plane + line + from];
    }
}

/* Take a row of latents of the window. */
static void take_row(Image *image, int32_t row) {
    const Side *rows = &image->latent_rows;
    if ((row == 0 && !rows->at_start) || (row + 1 == rows->count && !rows->at_end))
        return;
    const int64_t stride = (int64_t)image->channels * (image->latent_columns.count + SPARE);
    const int16_t *taps[MAX_TAPS];
    for (int32_t down = 0; down < 3; down++) {
        int32_t from = row + down - 1;
        from = from < 0 ? 0 : from >= rows->count ? rows->count - 1 : from;
        load_latents(image, from, image->latents + down * stride);
        for (int32_t right = 0; right < 3; right++)
            taps[3 * down + right] = image->latents + down * stride + image->channels * right;
    }
    const int32_t out = row - !rows->at_start;
    image->kernels.first(image->decoder, image->bias, convolved(image->latent_columns).count, taps,
                         residual_row(&image->rows[0], out));
    push(image, 0, out);
}

/* Run the last row of a layer, which no other follows. */
static void end_layer(Image *image, int32_t index) {
    const Rows *rows = &image->rows[index];
    if (rows->layer->kind != ENLARGE && rows->rows.at_end)
        run_row(image, index, rows->rows.count - 1);
}

/* As many steps as there is room for: rows of latents, and then the ends of the layers, in order. Each
 * gives at most the pixels of one row of latents. */
static void run(Image *image) {
    dynenc_pixels_call *call = image->call;
    const int32_t rows = image->latent_rows.count, side = image->decoder->side;
    const int32_t rest = call->rows - call->done; /* rows of pixels */
    const int32_t most = rest <= call->room ? rest : call->room - side + 1;
    for (; call->step < rows + image->decoder->count; call->step++) {
        if (call->done - image->first_row >= most)
            return;
        if (call->step < rows)
            take_row(image, call->step);
        else
            end_layer(image, call->step - rows);
    }
}

static int64_t start(dynenc_pixels_call *call, Image *image) {
    if (!call || !call->decoder)
        return DYNENC_BAD_ARGUMENT;
    const PixelDecoder *decoder = call->decoder;
    if (call->height < 1 || call->height > MAX_SIDE || call->width < 1 || call->width > MAX_SIDE ||
        call->top < 0 || call->left < 0 || call->rows < 1 || call->columns < 1 ||
        call->rows > decoder->side * call->height - call->top ||
        call->columns > decoder->side * call->width - call->left || call->step_q < 0)
        return DYNENC_BAD_ARGUMENT;
    memset(image, 0, sizeof *image);
    image->call = call;
    image->decoder = decoder;
    image->channels = decoder->first.channels;
    image->kernels = dynenc_pixel_kernels(call->path);
    if (!image->kernels.multiply)
        return DYNENC_BAD_ARGUMENT;
    for (int32_t i = 0; i < decoder->count; i++)
        image->rows[i].layer = &decoder->layers[i];
    plan(image, NULL);
    return 0;
}

/* The biases of the first convolution for the call's step. */
static void set_bias(Image *image) {
    const Product *first = &image->decoder->first;
    const int32_t *bias = PART(image->decoder, int32_t, first->bias_at);
    const int32_t *slope = bias + first->outputs, step_q = image->call->step_q;
    for (int32_t i = 0; i < first->outputs; i++)
        image->bias[i] = bias[i] + slope[i] * (step_q < MAX_STEP ? step_q : MAX_STEP);
}

int64_t dynenc_pixels_workspace(const dynenc_pixels_call *call) {
    Image image;
    const int64_t failed = start((dynenc_pixels_call *)call, &image);
    return failed ? failed : image.size;
}

int64_t dynenc_pixels(dynenc_pixels_call *call) {
    Image image;
    const int64_t failed = start(call, &image);
    if (failed)
        return failed;
    if (!call->latents || !call->pixels || call->stride < 3LL * call->columns || !call->workspace ||
        (uintptr_t)call->workspace % ALIGNMENT || call->step < 0 || call->done < 0 ||
        call->done >= call->rows || call->room < 1 ||
        (call->room < image.decoder->side && call->room < call->rows - call->done))
        return DYNENC_BAD_ARGUMENT;
    if (call->workspace_size < image.size)
        return DYNENC_TOO_SMALL;
    if (!call->step)
        memset(call->workspace, 0, (size_t)image.size);
    image.first_row = call->done;
    plan(&image, call->workspace);
    set_bias(&image);
    run(&image);
    return 0;
}
