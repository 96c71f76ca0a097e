// 3x3 convolutions of float32 images by Winograd's minimal filtering. See winograd.py for the method.

#include <algorithm>
#include <utility>

#include "buffer.h"
#include "channels.h"

#define UNROLLED _Pragma("GCC unroll 16")

namespace {

Buffer<float> zeros(int64_t length) {
    Buffer<float> buffer = allocate<float>(length);
    if (buffer) std::memset(buffer.get(), 0, length * sizeof(float));
    return buffer;
}

// Polynomials are multiplied by their values at so many points, SIDE + 1, and at infinity: at zero where SIDE is even,
// and at these and their negatives. Pairs halve the work, and of such fractions these give the least errors.
constexpr double PAIRS[][3] = {{3 / 8., 5 / 4.}, {5 / 8., 3 / 2.}, {1 / 4., 7 / 8., 7 / 4.}, {1 / 2., 1, 2}};
template <int SIDE> constexpr double point(int number) {
    if (SIDE % 2 == 0 && number == 0) return 0;
    const int of_pairs = SIDE % 2 ? number : number - 1;
    const double value = PAIRS[SIDE - 3][of_pairs / 2];
    return of_pairs % 2 ? -value : value;
}

// A row for each point, and one for infinity.
template <int SIDE, int WIDTH> struct Matrix {
    static constexpr int ROWS = SIDE + 2, COLUMNS = WIDTH;
    float at[ROWS][COLUMNS];
    constexpr bool any(int row, int odd) const {
        for (int k = odd; k < COLUMNS; k += 2)
            if (at[row][k] != 0) return true;
        return false;
    }
    // Is the next row this one, but for the sign of odd columns?
    constexpr bool mirrored(int row) const {
        if (row < 0 || row + 1 >= ROWS || !any(row, 0) || !any(row, 1)) return false;
        for (int k = 0; k < COLUMNS; k++)
            if (at[row + 1][k] != (k % 2 ? -at[row][k] : at[row][k])) return false;
        return true;
    }
    // Are there zeros alone before this value, in even (or odd) columns of its row, or in its column?
    constexpr bool first_of_row(int row, int column) const {
        for (int k = column % 2; k < column; k += 2)
            if (at[row][k] != 0) return false;
        return true;
    }
    constexpr bool first_of_column(int row, int column) const {
        for (int k = 0; k < row; k++)
            if (at[k][column] != 0) return false;
        return true;
    }
};

// Values of a polynomial, of its coefficients.
template <int SIDE, int COLUMNS> constexpr Matrix<SIDE, COLUMNS> powers() {
    Matrix<SIDE, COLUMNS> matrix{};
    for (int row = 0; row <= SIDE; row++) {
        double power = 1;
        for (int k = 0; k < COLUMNS; k++, power *= point<SIDE>(row)) matrix.at[row][k] = float(power);
    }
    matrix.at[SIDE + 1][COLUMNS - 1] = 1;
    return matrix;
}

// Coefficients of Lagrange's polynomials, 1 at one point and 0 at the others, and of that with all points as roots.
template <int SIDE> constexpr Matrix<SIDE, SIDE + 2> lagrange() {
    Matrix<SIDE, SIDE + 2> matrix{};
    for (int row = 0; row < SIDE + 2; row++) {
        double polynomial[SIDE + 2] = {1}, divisor = 1;
        for (int other = 0; other <= SIDE; other++) {
            if (other == row) continue;
            if (row <= SIDE) divisor *= point<SIDE>(row) - point<SIDE>(other);
            for (int k = SIDE + 1; k >= 0; k--)
                polynomial[k] = (k ? polynomial[k - 1] : 0) - point<SIDE>(other) * polynomial[k];
        }
        for (int k = 0; k < SIDE + 2; k++) matrix.at[row][k] = float(polynomial[k] / divisor);
    }
    return matrix;
}

// Call f for 0, 1, .. COUNT - 1, each known to the compiler.
template <class F, int... K> inline __attribute__((always_inline)) void for_all(F f, std::integer_sequence<int, K...>) {
    (f(std::integral_constant<int, K>{}), ...);
}
template <int COUNT, class F> inline __attribute__((always_inline)) void for_each(F f) {
    for_all(f, std::make_integer_sequence<int, COUNT>());
}

template <bool FIRST> inline Floats plus(Floats sum, float factor, Floats value) {
    return FIRST ? factor * value : sum + factor * value;
}

// result [ROWS] = MATRIX values [COLUMNS].
template <const auto& MATRIX> inline void multiply(const Floats* values, Floats* result) {
    for_each<MATRIX.ROWS>([&](auto row) {
        if constexpr (!MATRIX.mirrored(row - 1)) {
            Floats sums[2]{};  // of even and of odd columns
            for_each<MATRIX.COLUMNS>([&](auto k) {
                constexpr float factor = MATRIX.at[row][k];
                if constexpr (factor != 0)
                    sums[k % 2] = plus<MATRIX.first_of_row(row, k)>(sums[k % 2], factor, values[k]);
            });
            result[row] = MATRIX.any(row, 0) && MATRIX.any(row, 1) ? sums[0] + sums[1] : sums[MATRIX.any(row, 1)];
            if constexpr (MATRIX.mirrored(row)) result[row + 1] = sums[0] - sums[1];
        }
    });
}

// result [COLUMNS] = MATRIX' values [ROWS].
template <const auto& MATRIX> inline void multiply_transposed(const Floats* values, Floats* result) {
    Floats of[2][MATRIX.ROWS];  // of two mirrored rows, what even and odd columns take
    for_each<MATRIX.ROWS>([&](auto row) {
        if constexpr (MATRIX.mirrored(row)) {
            of[0][row] = values[row] + values[row + 1];
            of[1][row] = values[row] - values[row + 1];
        } else if constexpr (!MATRIX.mirrored(row - 1)) {
            of[0][row] = of[1][row] = values[row];
        }
    });
    for_each<MATRIX.COLUMNS>([&](auto k) {
        Floats sum{};
        for_each<MATRIX.ROWS>([&](auto row) {
            constexpr float factor = MATRIX.at[row][k];
            if constexpr (factor != 0 && !MATRIX.mirrored(row - 1))
                sum = plus<MATRIX.first_of_column(row, k)>(sum, factor, of[k % 2][row]);
        });
        result[k] = sum;
    });
}

// Call multiply(values [FROM], result [TO]) for the columns of x [FROM, FROM], then for the rows of what comes of it. x
// is given by load(row, column), the result is taken by store(row, column, value).
template <int FROM, int TO, class Multiply, class Load, class Store>
inline void multiply_both_axes(Multiply multiply, Load load, Store store) {
    Floats half[FROM][TO], values[FROM], result[TO];
    for (int column = 0; column < FROM; column++) {
        UNROLLED for (int row = 0; row < FROM; row++) values[row] = load(row, column);
        multiply(values, half[column]);
    }
    for (int row = 0; row < TO; row++) {
        UNROLLED for (int column = 0; column < FROM; column++) values[column] = half[column][row];
        multiply(values, result);
        UNROLLED for (int column = 0; column < TO; column++) store(row, column, result[column]);
    }
}

// MATRIX x MATRIX' of x [COLUMNS, COLUMNS].
template <const auto& MATRIX, class Load, class Store> void to_points(Load load, Store store) {
    multiply_both_axes<MATRIX.COLUMNS, MATRIX.ROWS>(multiply<MATRIX>, load, store);
}

// MATRIX' x MATRIX of x [ROWS, ROWS].
template <const auto& MATRIX, class Load, class Store> void from_points(Load load, Store store) {
    multiply_both_axes<MATRIX.ROWS, MATRIX.COLUMNS>(multiply_transposed<MATRIX>, load, store);
}

// A block of sums stays in registers: of so many rows, and two vectors wide.
#ifdef __AVX512F__
constexpr int TILES = 12, CHANNELS = 8;
#else
constexpr int TILES = 6, CHANNELS = 4;
#endif
constexpr int64_t PANEL = 2 * LANES;

// sums [TILES, PANEL] = a b for a [TILES, depth] and b [depth, PANEL]; rows of a are `pitch` apart, of sums `step`.
// Asks for the lines from `next` on, as many as depth.
__attribute__((noinline)) void multiply_rows(const float* a, int64_t pitch, const float* b, int64_t depth, float* sums,
                                             int64_t step, const float* next) {
    const float* rows[TILES / 3];  // with two steps each: all that an address can hold
    UNROLLED for (int three = 0; three < TILES / 3; three++) rows[three] = a + 3 * three * pitch;
    Floats sum[TILES][2] = {};
    for (int64_t k = 0; k < depth; k++, b += PANEL) {
        const Floats first = read<Floats>(b, All{}), second = read<Floats>(b + LANES, All{});
        __builtin_prefetch(next + k * 16);
        UNROLLED for (int row = 0; row < TILES; row++) {
            const float value = rows[row / 3][row % 3 * pitch + k];
            sum[row][0] += value * first;
            sum[row][1] += value * second;
        }
    }
    UNROLLED for (int row = 0; row < TILES; row++)
        UNROLLED for (int v = 0; v < 2; v++) write(sums + row * step + v * LANES, sum[row][v], All{});
}

// sums [CHANNELS, PANEL] += a' b for a [depth, CHANNELS] and b [depth, PANEL], with rows a_pitch and b_pitch apart.
__attribute__((noinline)) void multiply_columns(const float* a, int64_t a_pitch, const float* b, int64_t b_pitch,
                                                int64_t depth, float* sums) {
    Floats sum[CHANNELS][2];
    UNROLLED for (int row = 0; row < CHANNELS; row++)
        UNROLLED for (int v = 0; v < 2; v++) sum[row][v] = read<Floats>(sums + row * PANEL + v * LANES, All{});
    for (int64_t k = 0; k < depth; k++, a += a_pitch, b += b_pitch) {
        const Floats first = read<Floats>(b, All{}), second = read<Floats>(b + LANES, All{});
        UNROLLED for (int row = 0; row < CHANNELS; row++) {
            sum[row][0] += a[row] * first;
            sum[row][1] += a[row] * second;
        }
    }
    UNROLLED for (int row = 0; row < CHANNELS; row++)
        UNROLLED for (int v = 0; v < 2; v++) write(sums + row * PANEL + v * LANES, sum[row][v], All{});
}

// Lines that are read or written at once must not be a power of two apart: they would share few places of a cache.
int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }
// Floats from a transformed tile to the next: its channels in whole panels.
int64_t pitch_of(int64_t channels) { return odd_lines(ceil_div(channels, PANEL) * PANEL); }

// `for_channels` where there is a vector of channels at least: less code, as f is compiled once.
template <class F> void for_vectors(int64_t channels, F f) {
    for (int64_t number = 0; number < vectors_of(channels); number++) f(std::min(number * LANES, channels - LANES));
}

// Images [.., height, width, channels]; what lies outside, or before row or column `from`, is at `outside`.
template <class T> struct Images {
    T* data;
    int64_t height, width, channels, from;
    T* outside;
    // The places of SIZE x SIZE pixels of an image.
    template <int SIZE> void find(int64_t image, int64_t top, int64_t left, T** places) const {
        for (int64_t row = top; row < top + SIZE; row++)
            for (int64_t column = left; column < left + SIZE; column++) {
                const bool inside = row >= from && row < height && column >= from && column < width;
                *places++ = inside ? data + ((image * height + row) * width + column) * channels : outside;
            }
    }
};

struct Sizes {
    int64_t images, channels, outputs, height, width, padding, border, threads;
    int64_t out_height() const { return height + 2 * padding - 2; }
    int64_t out_width() const { return width + 2 * padding - 2; }
};

template <int SIDE> struct Winograd {
    static constexpr int LONG = SIDE + 2, ALL = LONG * LONG;
    static constexpr int64_t STEP = (ALL + 1) * PANEL;  // from the products of a tile to the next tile's
    static constexpr int64_t MOST = 48;                 // tiles at once
    static constexpr Matrix<SIDE, 3> FILTER = powers<SIDE, 3>();
    static constexpr Matrix<SIDE, SIDE> RESULT = powers<SIDE, SIDE>();
    static constexpr Matrix<SIDE, LONG> INPUT = lagrange<SIDE>();

    const Sizes& sizes;
    const int64_t down = ceil_div(sizes.out_height(), SIDE), across = ceil_div(sizes.out_width(), SIDE);
    const int64_t tiles = sizes.images * down * across;
    const int64_t panels = ceil_div(sizes.outputs, PANEL);
    const int64_t pitch = pitch_of(sizes.channels), out_pitch = pitch_of(sizes.outputs);

    template <int SIZE, class T> void find(const Images<T>& images, int64_t tile, int64_t padding, T** places) const {
        const int64_t top = tile / across % down * SIDE - padding, left = tile % across * SIDE - padding;
        images.template find<SIZE>(tile / (down * across), top, left, places);
    }

    // `count` tiles from `first` on at all points: out [ALL, .., pitch], `step` apart.
    template <const auto& MATRIX>
    void spread(const Images<const float>& images, int64_t padding, int64_t first, int64_t count, float* out,
                int64_t step) const {
        constexpr int SIZE = MATRIX.COLUMNS;
        const float* places[SIZE * SIZE];
        for (int64_t tile = first; tile < first + count; tile++, out += pitch_of(images.channels)) {
            find<SIZE>(images, tile, padding, places);
            for_vectors(images.channels, [&](int64_t channel) {
                to_points<MATRIX>(
                    [&](int row, int column) { return read<Floats>(places[row * SIZE + column] + channel, All{}); },
                    [&](int row, int column, Floats values) {
                        write(out + (row * LONG + column) * step + channel, values, All{});
                    });
            });
        }
    }

    // Where the value of a filter at a point is, of [panels, ALL, channels, PANEL].
    int64_t place(int row, int column, int64_t channels, int64_t channel, int64_t output) const {
        return ((output / PANEL * ALL + row * LONG + column) * channels + channel) * PANEL + output % PANEL;
    }

    // By all threads together: filters [3, 3, channels, outputs] at all points.
    void spread_filters(const float* filters, float* out) const {
        const int64_t channels = sizes.channels, outputs = sizes.outputs;
#pragma omp for
        for (int64_t channel = 0; channel < channels; channel++)
            for_vectors(outputs, [&](int64_t output) {
                const float* filter = filters + channel * outputs + output;
                to_points<FILTER>(
                    [&](int row, int column) {
                        return read<Floats>(filter + (row * 3 + column) * channels * outputs, All{});
                    },
                    [&](int row, int column, Floats values) {
                        for (int64_t lane = 0; lane < LANES; lane++)
                            out[place(row, column, channels, channel, output + lane)] = values[lane];
                    });
            });
    }

    // Result for `count` channels from `output` on, of a tile's products [ALL, PANEL], to the places of its pixels.
    static void collect(const float* products, int64_t output, int64_t count, float* const* places) {
        for_channels(count, [&](auto lanes, int64_t part, int64_t) {
            from_points<RESULT>(
                [&](int row, int column) {
                    return read<Floats>(products + (row * LONG + column) * PANEL + part, All{});
                },
                [&](int row, int column, Floats values) {
                    write(places[row * SIDE + column] + output + part, values, lanes);
                });
        });
    }

    // filters [3, 3, channels, outputs]
    int convolve(const float* x, const float* filters, float* out) const {
        const int64_t channels = sizes.channels, outputs = sizes.outputs, block = ALL * TILES * pitch;
        // The more filters, the more tiles are multiplied by those that have come into the cache; but each thread has
        // some.
        const int64_t wanted = std::clamp<int64_t>(channels * outputs / 8192 * 12, 12, MOST) / TILES;
        const int64_t blocks = std::clamp<int64_t>(tiles / (TILES * sizes.threads), 1, wanted);
        Buffer<float> at_points = zeros(ALL * panels * channels * PANEL), nothing = zeros(channels);
        if (!at_points || !nothing) return 1;
        int failed = 0;
#pragma omp parallel num_threads(int(sizes.threads)) reduction(max : failed)
        {
            spread_filters(filters, at_points.get());
            // [blocks, ALL, TILES, pitch], [blocks, TILES, STEP], and where pixels go that lie outside
            Buffer<float> in = zeros(blocks * block), products = zeros(blocks * TILES * STEP), lost = zeros(outputs);
            failed = !in || !products || !lost;
            const Images<const float> input{x, sizes.height, sizes.width, channels, 0, nothing.get()};
            const Images<float> result{out, sizes.out_height(), sizes.out_width(), outputs, 0, lost.get()};
            float* places[MOST][SIDE * SIDE];
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < tiles; first += blocks * TILES) {
                if (failed) continue;
                const int64_t last = std::min(first + blocks * TILES, tiles), here = ceil_div(last - first, TILES);
                for (int64_t number = 0; number < here; number++) {
                    const int64_t tile = first + number * TILES, count = std::min<int64_t>(TILES, last - tile);
                    spread<INPUT>(input, sizes.padding, tile, count, in.get() + number * block, TILES * pitch);
                }
                for (int64_t tile = first; tile < last; tile++) find<SIDE>(result, tile, 0, places[tile - first]);
                for (int64_t panel = 0; panel < panels; panel++) {
                    const int64_t output = panel * PANEL, count = std::min(PANEL, outputs - output);
                    for (int64_t point = 0; point < ALL; point++) {
                        const float* filter = at_points.get() + (panel * ALL + point) * channels * PANEL;
                        for (int64_t number = 0; number < here; number++)  // every two ask for the filters to come
                            multiply_rows(in.get() + number * block + point * TILES * pitch, pitch, filter, channels,
                                          products.get() + number * TILES * STEP + point * PANEL, STEP,
                                          filter + channels * (PANEL + number % 2 * 16));
                    }
                    for (int64_t tile = 0; tile < last - first; tile++)
                        collect(products.get() + tile * STEP, output, count, places[tile]);
                }
            }
        }
        return failed;
    }

    // out [3, 3, channels, outputs]
    int weight_gradient(const float* x, const float* gradient, float* out) const {
        const int64_t channels = sizes.channels, outputs = sizes.outputs;
        // All threads take a group of tiles to the points, then each adds up products of all of them at some points: in
        // the same order for any number of threads.
        const int64_t group = channels * outputs > 8192 ? 96 : 48, together = 4;
        const int64_t in_step = odd_lines(group * pitch), out_step = odd_lines(group * out_pitch);
        const int64_t sum_rows = ceil_div(channels, CHANNELS) * CHANNELS;
        Buffer<float> in = zeros(ALL * in_step), gradients = zeros(ALL * out_step);
        Buffer<float> sums = zeros(ALL * panels * sum_rows * PANEL), nothing = zeros(std::max(channels, outputs));
        if (!in || !gradients || !sums || !nothing) return 1;
        const Images<const float> input{x, sizes.height, sizes.width, channels, sizes.border, nothing.get()};
        const Images<const float> result{gradient, sizes.out_height(), sizes.out_width(), outputs, 0, nothing.get()};
#pragma omp parallel num_threads(int(sizes.threads))
        {
            for (int64_t first = 0; first < tiles; first += group) {
                const int64_t count = std::min(group, tiles - first);
#pragma omp for
                for (int64_t tile = 0; tile < count; tile += together) {
                    const int64_t here = std::min(together, count - tile);
                    spread<INPUT>(input, sizes.padding, first + tile, here, in.get() + tile * pitch, in_step);
                    spread<RESULT>(result, 0, first + tile, here, gradients.get() + tile * out_pitch, out_step);
                }
#pragma omp for collapse(2)
                for (int64_t point = 0; point < ALL; point++)
                    for (int64_t panel = 0; panel < panels; panel++)
                        for (int64_t row = 0; row < sum_rows; row += CHANNELS)
                            multiply_columns(in.get() + point * in_step + row, pitch,
                                             gradients.get() + point * out_step + panel * PANEL, out_pitch, count,
                                             sums.get() + ((panel * ALL + point) * sum_rows + row) * PANEL);
            }
#pragma omp for
            for (int64_t channel = 0; channel < channels; channel++)
                for_vectors(outputs, [&](int64_t output) {
                    from_points<FILTER>(
                        [&](int row, int column) {
                            Floats values{};
                            for (int64_t lane = 0; lane < LANES; lane++)
                                values[lane] = sums[place(row, column, sum_rows, channel, output + lane)];
                            return values;
                        },
                        [&](int row, int column, Floats values) {
                            write(out + ((row * 3 + column) * channels + channel) * outputs + output, values, All{});
                        });
                });
        }
        return 0;
    }
};

// Call f(a Winograd of `side`).
template <class F> int with_side(int64_t side, const Sizes& sizes, F f) {
    switch (side) {
        case 3: return f(Winograd<3>{sizes});
        case 4: return f(Winograd<4>{sizes});
        case 5: return f(Winograd<5>{sizes});
        default: return f(Winograd<6>{sizes});
    }
}

}  // namespace

// x [images, height, width, channels], filters [3, 3, channels, outputs]; out [images, out_height, out_width, outputs],
// by tiles of side x side, 3 to 6. channels and outputs are 16 or more. Returns 1 where memory ran out, else 0.
extern "C" int winograd_convolution(const float* x, const float* filters, float* out, int64_t images, int64_t channels,
                                    int64_t outputs, int64_t height, int64_t width, int64_t padding, int64_t side,
                                    int64_t threads) {
    const Sizes sizes{images, channels, outputs, height, width, padding, 0, threads};
    return with_side(side, sizes, [&](const auto& winograd) { return winograd.convolve(x, filters, out); });
}

// The gradient of the filters, out [3, 3, channels, outputs], by that of the result. border: the first row and column
// of x count as zeros.
extern "C" int winograd_weight_gradient(const float* x, const float* gradient, float* out, int64_t images,
                                        int64_t channels, int64_t outputs, int64_t height, int64_t width,
                                        int64_t padding, int64_t border, int64_t side, int64_t threads) {
    const Sizes sizes{images, channels, outputs, height, width, padding, border, threads};
    return with_side(side, sizes, [&](const auto& winograd) { return winograd.weight_gradient(x, gradient, out); });
}
