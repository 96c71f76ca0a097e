// The weight gradient of a 3x3 convolution in bfloat16, by AVX512-BF16. See conv_weight_gradient.py for the method.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <utility>

#include "bfloat16.h"
#include "buffer.h"

#ifndef __AVX512BF16__
#error "the compiler has no AVX512-BF16"
#endif

namespace {

constexpr int64_t VECTOR = 16, TAPS = 9;
constexpr int64_t PIXELS = 256;  // of a chunk, about: enough to hide the loads and stores of sums, few enough for L2

// Two images' values of one pixel side by side: first in the lower half of each word.
void interleave(const bfloat16* first, const bfloat16* second, int64_t channels, uint32_t* out) {
    if (second)
        for (int64_t c = 0; c < channels; c++) out[c] = uint32_t(first[c].bits) | uint32_t(second[c].bits) << 16;
    else
        for (int64_t c = 0; c < channels; c++) out[c] = first[c].bits;
}

// Where a pixel's values begin in a panel.
struct Place {
    int32_t x, gradient;
};

// A tile is of `high(WIDE)` input and WIDE output channels: its sums stay in registers, and 16 or 32 channels are whole
// tiles where WIDE is that.
constexpr int64_t high(int64_t wide) { return wide == 64 ? 6 : 256 / wide; }

// sums [HIGH, WIDE] += the products of x [.., HIGH] and gradient [.., WIDE] at `places`, for the first ROWS of HIGH.
template <int WIDE, int ROWS>
void multiply(const uint32_t* x, const uint32_t* gradient, const Place* places, int64_t pixels, float* sums) {
    constexpr int VECTORS = WIDE / VECTOR;
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) sum[row][v] = _mm512_load_ps(sums + row * WIDE + v * VECTOR);
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        const uint32_t *high = x + places[pixel].x, *wide = gradient + places[pixel].gradient;
        __m512bh vectors[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) vectors[v] = (__m512bh)_mm512_load_si512(wide + v * VECTOR);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; row++) {
            __m512bh value = (__m512bh)_mm512_set1_epi32(int(high[row]));
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; v++) sum[row][v] = _mm512_dpbf16_ps(sum[row][v], vectors[v], value);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) _mm512_store_ps(sums + row * WIDE + v * VECTOR, sum[row][v]);
}

using Multiply = void (*)(const uint32_t*, const uint32_t*, const Place*, int64_t, float*);

// multiply<WIDE, ROWS> for the number of rows, from 1 on.
template <int WIDE, int... ROWS> Multiply multiply_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    constexpr Multiply all[] = {multiply<WIDE, ROWS + 1>...};
    return all[rows - 1];
}

// x [images, x_height, x_width, channels], gradient [images, height, width, outputs], out [outputs, 3, 3, channels];
// outputs are a multiple of WIDE. border: the first row and column of x count as zeros. Returns 1 where memory ran out,
// else 0.
template <int WIDE>
int weight_gradient(const bfloat16* x, const bfloat16* gradient, bfloat16* out, int64_t images, int64_t channels,
                    int64_t outputs, int64_t height, int64_t width, int64_t x_height, int64_t x_width, int64_t stride,
                    int64_t padding, int64_t border, int64_t threads) {
    constexpr int64_t HIGH = high(WIDE), TILE = HIGH * WIDE;
    // A chunk is some rows of a pair of images, or all rows of several pairs.
    const int64_t pairs = ceil_div(images, 2), rows = ceil_div(height, ceil_div(height * width, PIXELS));
    const int64_t together = rows < height ? 1 : std::max<int64_t>(1, PIXELS / (height * width));
    const int64_t parts = ceil_div(height, rows), chunks = ceil_div(pairs, together) * parts;
    const int64_t x_rows = (rows - 1) * stride + 3;
    const int64_t x_panels = ceil_div(channels, HIGH), gradient_panels = outputs / WIDE;
    const int64_t x_panel = together * x_rows * x_width * HIGH, gradient_panel = together * rows * width * WIDE;

    // For each part of an image and tap, the pixels whose neighbor lies in x, and how many there are in a pair.
    auto places = allocate<Place>(parts * TAPS * together * rows * width);
    auto counts = allocate<int64_t>(parts * TAPS);
    if (!places || !counts) return 1;
    for (int64_t part = 0; part < parts; part++)
        for (int64_t tap = 0; tap < TAPS; tap++) {
            Place* place = places.get() + (part * TAPS + tap) * together * rows * width;
            const Place* const start = place;
            for (int64_t pair = 0; pair < together; pair++)
                for (int64_t row = 0; row < std::min(rows, height - part * rows); row++)
                    for (int64_t column = 0; column < width; column++) {
                        const int64_t y = (part * rows + row) * stride + tap / 3 - padding;
                        const int64_t across = column * stride + tap % 3 - padding;
                        if (y < border || y >= x_height || across < border || across >= x_width) continue;
                        *place++ = {int32_t(((pair * x_rows + row * stride + tap / 3) * x_width + across) * HIGH),
                                    int32_t(((pair * rows + row) * width + column) * WIDE)};
                    }
            counts[part * TAPS + tap] = (place - start) / together;
        }

    const int64_t tiles = gradient_panels * x_panels * TAPS;
    auto work = [&] {
        // Every thread packs what its own tiles take: no thread waits for another, and the sums are the same for any
        // number of them.
        const int64_t first = tiles * omp_get_thread_num() / omp_get_num_threads();
        const int64_t last = tiles * (omp_get_thread_num() + 1) / omp_get_num_threads();
        if (first == last) return 0;
        const int64_t from_gradient = first / TAPS / x_panels, to_gradient = ceil_div(last, TAPS * x_panels);
        const bool one = to_gradient - from_gradient == 1;
        const int64_t from_x = one ? first / TAPS % x_panels : 0;
        const int64_t to_x = one ? (last - 1) / TAPS % x_panels + 1 : x_panels;
        const int64_t used = std::min(channels, to_x * HIGH) - from_x * HIGH;
        auto packed_x = allocate<uint32_t>((to_x - from_x) * x_panel);
        auto packed_gradient = allocate<uint32_t>((to_gradient - from_gradient) * gradient_panel);
        auto pixel = allocate<uint32_t>((to_x - from_x) * HIGH);
        auto sums = allocate<float>((last - first) * TILE);
        if (!packed_x || !packed_gradient || !pixel || !sums) return 1;
        std::fill(pixel.get(), pixel.get() + (to_x - from_x) * HIGH, 0);
        std::fill(sums.get(), sums.get() + (last - first) * TILE, 0.0f);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t pair = chunk / parts * together, part = chunk % parts;
            const int64_t here = std::min(together, pairs - pair);
            for (int64_t line = 0; line < here * x_rows; line++) {
                const int64_t image = 2 * (pair + line / x_rows), row = line % x_rows;
                const int64_t y = part * rows * stride + row - padding, gradient_y = part * rows + row;
                const bool odd = image + 1 == images;
                if (y >= 0 && y < x_height) {
                    const bfloat16* from = x + (image * x_height + y) * x_width * channels + from_x * HIGH;
                    uint32_t* to = packed_x.get() + line * x_width * HIGH;
                    for (int64_t column = 0; column < x_width; column++, from += channels, to += HIGH) {
                        const bfloat16* second = odd ? nullptr : from + x_height * x_width * channels;
                        if (used == HIGH) {  // of a number that the compiler knows
                            interleave(from, second, HIGH, to);
                            continue;
                        }
                        interleave(from, second, used, pixel.get());
                        for (int64_t panel = 0; panel < to_x - from_x; panel++)
                            std::memcpy(to + panel * x_panel, pixel.get() + panel * HIGH, HIGH * sizeof(uint32_t));
                    }
                }
                if (row < rows && gradient_y < height) {
                    const bfloat16* from = gradient + (image * height + gradient_y) * width * outputs;
                    uint32_t* to = packed_gradient.get() + (line / x_rows * rows + row) * width * WIDE;
                    for (int64_t column = 0; column < width; column++, from += outputs, to += WIDE)
                        for (int64_t panel = from_gradient; panel < to_gradient; panel++) {
                            const bfloat16* values = from + panel * WIDE;
                            const bfloat16* second = odd ? nullptr : values + height * width * outputs;
                            interleave(values, second, WIDE, to + (panel - from_gradient) * gradient_panel);
                        }
                }
            }
            for (int64_t tile = first; tile < last; tile++) {
                const int64_t list = part * TAPS + tile % TAPS, panel = tile / TAPS % x_panels;
                multiply_of<WIDE>(std::min(HIGH, channels - panel * HIGH), std::make_integer_sequence<int, HIGH>())(
                    packed_x.get() + (panel - from_x) * x_panel,
                    packed_gradient.get() + (tile / TAPS / x_panels - from_gradient) * gradient_panel,
                    places.get() + list * together * rows * width, here * counts[list],
                    sums.get() + (tile - first) * TILE);
            }
        }
        for (int64_t tile = first; tile < last; tile++) {
            const int64_t channel = tile / TAPS % x_panels * HIGH, output = tile / TAPS / x_panels * WIDE;
            const float* sum = sums.get() + (tile - first) * TILE;
            bfloat16* to = out + (output * TAPS + tile % TAPS) * channels + channel;
            for (int64_t column = 0; column < WIDE; column++, to += TAPS * channels)
                for (int64_t row = 0; row < std::min(HIGH, channels - channel); row++)
                    to[row].bits = uint16_t(upper_half<uint32_t>(sum[row * WIDE + column]));
        }
        return 0;
    };
    int failed = 0;
#pragma omp parallel num_threads(int(threads)) reduction(max : failed)
    failed = work();
    return failed;
}

}  // namespace

// outputs are a multiple of 64, or 16 or 32. Returns 1 where memory ran out, else 0.
extern "C" int conv_weight_gradient(const bfloat16* x, const bfloat16* gradient, bfloat16* out, int64_t images,
                                    int64_t channels, int64_t outputs, int64_t height, int64_t width, int64_t x_height,
                                    int64_t x_width, int64_t stride, int64_t padding, int64_t border,
                                    int64_t threads) {
    auto function = outputs == 16 ? weight_gradient<16> : outputs == 32 ? weight_gradient<32> : weight_gradient<64>;
    return function(x, gradient, out, images, channels, outputs, height, width, x_height, x_width, stride, padding,
                    border, threads);
}
