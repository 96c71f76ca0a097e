// The weight gradient of a 3x3 convolution in bfloat16, by AVX512-BF16. See conv_weight_gradient.py for the method.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "vector.h"

#ifndef __AVX512BF16__
#error "the compiler has no AVX512-BF16"
#endif

namespace {

constexpr int64_t HIGH = 6, WIDE = 64, VECTOR = 16, TAPS = 9;  // of a tile: input and output channels
constexpr int64_t TILE = HIGH * WIDE;
constexpr int64_t PIXELS = 256;  // of a chunk, about: enough to hide the loads and stores of sums, few enough for L2

struct Free {
    void operator()(void* place) const { std::free(place); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> allocate(int64_t length) {
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, (length * sizeof(T) + 63) / 64 * 64)));
}

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

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

// sums [HIGH, WIDE] += the products of x [.., HIGH] and gradient [.., WIDE] at `places`, for the first ROWS of HIGH.
template <int ROWS>
void multiply(const uint32_t* x, const uint32_t* gradient, const Place* places, int64_t pixels, float* sums) {
    constexpr int VECTORS = WIDE / VECTOR;
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sum[row][v] = _mm512_load_ps(sums + row * WIDE + v * VECTOR);
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        const uint32_t *high = x + places[pixel].x, *wide = gradient + places[pixel].gradient;
        __m512bh vectors[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) vectors[v] = (__m512bh)_mm512_load_si512(wide + v * VECTOR);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            __m512bh value = (__m512bh)_mm512_set1_epi32(int(high[row]));
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sum[row][v] = _mm512_dpbf16_ps(sum[row][v], vectors[v], value);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) _mm512_store_ps(sums + row * WIDE + v * VECTOR, sum[row][v]);
}

using Multiply = void (*)(const uint32_t*, const uint32_t*, const Place*, int64_t, float*);
constexpr Multiply MULTIPLY[HIGH + 1] = {nullptr,     multiply<1>, multiply<2>, multiply<3>,
                                         multiply<4>, multiply<5>, multiply<6>};

}  // namespace

// x [images, height + 2 - 2 * padding, width + 2 - 2 * padding, channels], gradient [images, height, width, outputs],
// out [outputs, 3, 3, channels]; outputs are a multiple of 64. border: rows above and columns to the left of x are zero.
extern "C" void conv_weight_gradient(const bfloat16* x, const bfloat16* gradient, bfloat16* out, int64_t images,
                                     int64_t channels, int64_t outputs, int64_t height, int64_t width, int64_t padding,
                                     int64_t border, int64_t threads) {
    // A chunk is some rows of a pair of images, or all rows of several pairs.
    const int64_t pairs = ceil_div(images, 2), rows = ceil_div(height, ceil_div(height * width, PIXELS));
    const int64_t together = rows < height ? 1 : std::max<int64_t>(1, PIXELS / (height * width));
    const int64_t parts = ceil_div(height, rows), chunks = ceil_div(pairs, together) * parts;
    const int64_t x_height = height + 2 - 2 * padding, x_width = width + 2 - 2 * padding;
    const int64_t x_panels = ceil_div(channels, HIGH), gradient_panels = outputs / WIDE;
    const int64_t x_panel = together * (rows + 2) * x_width * HIGH, gradient_panel = together * rows * width * WIDE;

    // For each part of an image and tap, the pixels whose neighbor lies in x, and how many there are in a pair.
    auto places = allocate<Place>(parts * TAPS * together * rows * width);
    auto counts = allocate<int64_t>(parts * TAPS);
    for (int64_t part = 0; part < parts; part++)
        for (int64_t tap = 0; tap < TAPS; tap++) {
            Place* place = places.get() + (part * TAPS + tap) * together * rows * width;
            const Place* const start = place;
            for (int64_t pair = 0; pair < together; pair++)
                for (int64_t row = 0; row < std::min(rows, height - part * rows); row++)
                    for (int64_t column = 0; column < width; column++) {
                        const int64_t y = part * rows + row + tap / 3 - padding, across = column + tap % 3 - padding;
                        if (y < border || y >= x_height || across < border || across >= x_width) continue;
                        *place++ = {int32_t(((pair * (rows + 2) + row + tap / 3) * x_width + across) * HIGH),
                                    int32_t(((pair * rows + row) * width + column) * WIDE)};
                    }
            counts[part * TAPS + tap] = (place - start) / together;
        }

    auto packed_x = allocate<uint32_t>(2 * x_panels * x_panel);
    auto packed_gradient = allocate<uint32_t>(2 * gradient_panels * gradient_panel);
    const int64_t tiles = gradient_panels * x_panels * TAPS;
    auto sums = allocate<float>(tiles * TILE);

#pragma omp parallel num_threads(int(threads))
    {
        const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
        const int64_t first = tiles * thread / count, last = tiles * (thread + 1) / count;
        auto pixel = allocate<uint32_t>(x_panels * HIGH);
        std::fill(pixel.get(), pixel.get() + x_panels * HIGH, 0);
        std::fill(sums.get() + first * TILE, sums.get() + last * TILE, 0.0f);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t pair = chunk / parts * together, part = chunk % parts;
            const int64_t here = std::min(together, pairs - pair);
            // Two buffers in turn: one barrier a chunk.
            uint32_t* const x_here = packed_x.get() + chunk % 2 * x_panels * x_panel;
            uint32_t* const gradient_here = packed_gradient.get() + chunk % 2 * gradient_panels * gradient_panel;
            for (int64_t line = thread; line < here * (rows + 2); line += count) {
                const int64_t image = 2 * (pair + line / (rows + 2)), row = line % (rows + 2);
                const int64_t y = part * rows + row - padding, gradient_y = part * rows + row;
                const bool odd = image + 1 == images;
                if (y >= 0 && y < x_height) {
                    const bfloat16* from = x + (image * x_height + y) * x_width * channels;
                    uint32_t* to = x_here + line * x_width * HIGH;
                    for (int64_t column = 0; column < x_width; column++, from += channels, to += HIGH) {
                        interleave(from, odd ? nullptr : from + x_height * x_width * channels, channels, pixel.get());
                        for (int64_t panel = 0; panel < x_panels; panel++)
                            std::memcpy(to + panel * x_panel, pixel.get() + panel * HIGH, HIGH * sizeof(uint32_t));
                    }
                }
                if (row < rows && gradient_y < height) {
                    const bfloat16* from = gradient + (image * height + gradient_y) * width * outputs;
                    uint32_t* to = gradient_here + (line / (rows + 2) * rows + row) * width * WIDE;
                    for (int64_t column = 0; column < width; column++, from += outputs, to += WIDE)
                        for (int64_t panel = 0; panel < gradient_panels; panel++) {
                            const bfloat16* values = from + panel * WIDE;
                            const bfloat16* second = odd ? nullptr : values + height * width * outputs;
                            interleave(values, second, WIDE, to + panel * gradient_panel);
                        }
                }
            }
#pragma omp barrier
            for (int64_t tile = first; tile < last; tile++) {
                const int64_t list = part * TAPS + tile % TAPS, panel = tile / TAPS % x_panels;
                MULTIPLY[std::min(HIGH, channels - panel * HIGH)](
                    x_here + panel * x_panel, gradient_here + tile / TAPS / x_panels * gradient_panel,
                    places.get() + list * together * rows * width, here * counts[list], sums.get() + tile * TILE);
            }
        }
        for (int64_t tile = first; tile < last; tile++) {
            const int64_t channel = tile / TAPS % x_panels * HIGH, output = tile / TAPS / x_panels * WIDE;
            bfloat16* to = out + (output * TAPS + tile % TAPS) * channels + channel;
            for (int64_t column = 0; column < WIDE; column++, to += TAPS * channels)
                for (int64_t row = 0; row < std::min(HIGH, channels - channel); row++)
                    store(to + row, sums[tile * TILE + row * WIDE + column]);
        }
    }
}
