// 2x2 max-pool, ghost batch norm, activation and residual on a CPU, and the gradient. See __init__.py.
//
// Work is divided into lines, an output row of an image each, and parts, as many lines as hold 32768 values: few enough
// for a core's cache. The division does not depend on the number of threads, nor so does any bit of the results.
// A group's parts are gone through twice, forward and backward: the second time from the cache, if the group fits.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <type_traits>
#include <vector>

#include "activation.h"
#include "channels.h"

namespace {

struct Shape {
    int64_t images, channels, rows, columns;  // of what is normalized
    int64_t groups;

    int64_t lines() const { return images / groups * rows; }  // of a group
    int64_t part_lines() const { return std::max<int64_t>(1, 32768 / (columns * channels)); }
    int64_t parts() const { return (lines() + part_lines() - 1) / part_lines(); }
    int64_t values() const { return lines() * columns; }  // of a channel in a group

    // Call f(image, row, number of those before) for the lines of a part.
    template <class F> void for_lines(int64_t group, int64_t part, F f) const {
        int64_t last = std::min(lines(), (part + 1) * part_lines());
        for (int64_t line = part * part_lines(); line < last; line++) {
            int64_t image = group * (images / groups) + line / rows;
            f(image, line % rows, line - part * part_lines());
        }
    }
    int64_t part_values(int64_t part) const {
        return std::min(part_lines(), lines() - part * part_lines()) * columns;
    }
};

// A vector's bits of the first maxima of 2x2 windows, NaN where they hold one, and the places of these, 0 to 3.
template <class T> struct Maxima {
    typedef typename InMemory<T>::Vector Vector;
    Vector bits, places;
    Floats values() const { return InMemory<T>::values(bits); }
};

template <class T, class Lanes> inline Maxima<T> max_of_windows(const T* corner, View<const T> x, Lanes lanes) {
    typedef typename InMemory<T>::Vector Vector;
    for (int row = 2; row < 4; row++) {
        __builtin_prefetch(corner + row * x.row);
        __builtin_prefetch(corner + row * x.row + x.pixel);
    }
    Maxima<T> max{read<Vector>(corner, lanes), Vector{}};
    const T* others[] = {corner + x.pixel, corner + x.row, corner + x.row + x.pixel};
    Vector place{};
    auto most = InMemory<T>::ordered(max.bits);
    for (const T* other : others) {
        Vector bits = read<Vector>(other, lanes);
        place += 1;
        auto order = InMemory<T>::ordered(bits);
        auto greater = InMemory<T>::is_greater(order, most);
        most = greater ? order : most;
        max.bits = greater ? bits : max.bits;
        max.places = greater ? place : max.places;
    }
    return max;
}

// Two sums, or what is like them, of each vector of channels.
struct Sums {
    std::vector<Floats> first, second;
    explicit Sums(int64_t channels) : first(vectors_of(channels)), second(first) {}
    void clear() {
        std::fill(first.begin(), first.end(), Floats{});
        std::fill(second.begin(), second.end(), Floats{});
    }
};

// Write mean and sum of squared deviations of a part to partial [2, channels], and the pooled x with its argmax.
// A line's are sums of deviations from the mean of the lines before, which it is then merged with (Chan, Golub and
// LeVeque 1983): no cancellation, however far the mean is from zero, but what float32 brings to the sums of a line.
template <class T, bool POOL>
void moments(Shape shape, int64_t group, int64_t part, View<const T> x, View<T> pooled,
             View<uint8_t> argmax, Sums& sums, float* partial) {
    sums.clear();
    shape.for_lines(group, part, [&](int64_t image, int64_t row, int64_t before) {
        const T* in = x.at(image, POOL ? 2 * row : row);
        T* out = POOL ? pooled.at(image, row) : nullptr;
        uint8_t* places = POOL ? argmax.at(image, row) : nullptr;
        for_channels(shape.channels, [&](auto lanes, int64_t channel, int64_t vector) {
            auto value_at = [&](int64_t column) {
                const T* pixel = in + column * x.pixel * (POOL ? 2 : 1) + channel;
                if (!POOL) return load(pixel, lanes);
                Maxima<T> max = max_of_windows(pixel, x, lanes);
                write(out + column * pooled.pixel + channel, max.bits, lanes);
                write(places + column * argmax.pixel + channel, __builtin_convertvector(max.places, Bytes), lanes);
                return max.values();
            };
            Floats &mean = sums.first[vector], &squared = sums.second[vector];
            Floats shift = before ? mean : value_at(0), sum{}, square{};
            for (int64_t column = 0; column < shape.columns; column++) {
                Floats value = value_at(column) - shift;
                sum += value;
                square += value * value;
            }
            Floats distance = sum * (1 / float(shape.columns)), own = square - sum * distance;
            own = own < 0 ? Floats{} : own;  // rounding can make a 0 negative; NaN stays
            float share = 1 / float(before + 1);
            squared += own + distance * distance * (float(before) * share * float(shape.columns));
            mean = shift + distance * share;
        });
    });
    for_channels(shape.channels, [&](auto lanes, int64_t channel, int64_t vector) {
        store(partial + channel, sums.first[vector], lanes);
        store(partial + shape.channels + channel, sums.second[vector], lanes);
    });
}

// Merge the moments of a group's parts for a channel.
void merge_moments(Shape shape, const float* partial, int64_t channel, float* mean, float* var) {
    double sum = 0, squared = 0;
    for (int64_t part = 0; part < shape.parts(); part++)
        sum += double(shape.part_values(part)) * partial[2 * part * shape.channels + channel];
    double middle = sum / double(shape.values());
    for (int64_t part = 0; part < shape.parts(); part++) {
        const float* found = partial + 2 * part * shape.channels + channel;
        squared += found[shape.channels] + double(shape.part_values(part)) * (found[0] - middle) * (found[0] - middle);
    }
    mean[channel] = float(middle);
    var[channel] = float(squared / double(shape.values()));
}

// What turns a channel's values into the activation's inputs: (value - mean) * factor + bias.
struct Affine {
    const float *mean, *factor, *bias;
};

float factor_of(float var, double eps, const float* scale, int64_t channel) {
    return 1 / std::sqrt(var + float(eps)) * (scale ? scale[channel] : 1.0f);
}

// Write a line of the output, with what it has of the border: the pixel to its left, above the first the row too. The
// residual, if any, is added to the activation; with SumRelu before it.
// value_at(column, channel, lanes): what is normalized.
template <class T, class Activation, class Values>
inline void normalize_line(Shape shape, int64_t image, int64_t row, Affine affine, Activation activation,
                           View<const T> residual, View<T> out, bool border, Values value_at) {
    T* line = out.at(image, row + border) + border * out.pixel;
    const T* other = residual.data ? residual.at(image, row) : nullptr;
    constexpr bool SUM_FIRST = std::is_same<Activation, SumRelu>::value;
    for_channels(shape.channels, [&](auto lanes, int64_t channel, int64_t) {
        Floats mean = load(affine.mean + channel, lanes), factor = load(affine.factor + channel, lanes);
        Floats bias = load(affine.bias + channel, lanes);
        for (int64_t column = 0; column < shape.columns; column++) {
            Floats value = (value_at(column, channel, lanes) - mean) * factor + bias;
            if (!SUM_FIRST) value = activation.value(value);
            if (other) value += load(other + column * residual.pixel + channel, lanes);
            if (SUM_FIRST) value = activation.value(value);
            store(line + column * out.pixel + channel, value, lanes);
        }
    });
    if (!border) return;
    std::memset(line - out.pixel, 0, shape.channels * sizeof(T));
    if (row == 0) std::memset(out.at(image, 0), 0, (shape.columns + 1) * shape.channels * sizeof(T));
}

template <class T>
void forward(Shape shape, View<const T> x, View<T> pooled, View<uint8_t> argmax, View<const T> residual,
             View<T> out, const float* bias, const float* scale, float* mean, float* var, int64_t activation_number,
             double alpha, double eps, int64_t border, int64_t threads) {
    const int64_t channels = shape.channels;
    std::vector<float> partial(shape.parts() * 2 * channels), factor(channels);
    std::vector<Sums> threads_sums(threads, Sums(channels));
    View<const T> in = x;
    if (pooled.data) in = {pooled.data, pooled.image, pooled.row, pooled.pixel};
    with_activation(activation_number, alpha, [&](auto activation) {
#pragma omp parallel num_threads(threads)
        {
            Sums& sums = threads_sums[omp_get_thread_num()];
            for (int64_t group = 0; group < shape.groups; group++) {
                float *group_mean = mean + group * channels, *group_var = var + group * channels;
#pragma omp for schedule(dynamic)
                for (int64_t part = 0; part < shape.parts(); part++) {
                    auto function = pooled.data ? moments<T, true> : moments<T, false>;
                    function(shape, group, part, x, pooled, argmax, sums, &partial[part * 2 * channels]);
                }
#pragma omp for
                for (int64_t channel = 0; channel < channels; channel++) {
                    merge_moments(shape, partial.data(), channel, group_mean, group_var);
                    factor[channel] = factor_of(group_var[channel], eps, scale, channel);
                }
#pragma omp for schedule(dynamic) nowait
                for (int64_t part = 0; part < shape.parts(); part++)
                    shape.for_lines(group, part, [&](int64_t image, int64_t row, int64_t) {
                        const T* line = in.at(image, row);
                        normalize_line(shape, image, row, {group_mean, factor.data(), bias}, activation, residual, out,
                                       border, [&](int64_t column, int64_t channel, auto lanes) {
                                           return load(line + column * in.pixel + channel, lanes);
                                       });
                    });
            }
        }
    });
}

template <class T>
void inference(Shape shape, View<const T> x, View<const T> residual, View<T> out, const float* mean,
               const float* var, const float* bias, const float* scale, int64_t activation_number, double alpha,
               int64_t pool, double eps, int64_t border, int64_t threads) {
    std::vector<float> factor(shape.channels);
    for (int64_t channel = 0; channel < shape.channels; channel++)
        factor[channel] = factor_of(var[channel], eps, scale, channel);
    with_activation(activation_number, alpha, [&](auto activation) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t part = 0; part < shape.parts(); part++)
            shape.for_lines(0, part, [&](int64_t image, int64_t row, int64_t) {
                auto line = [&](auto value_at) {
                    normalize_line(shape, image, row, {mean, factor.data(), bias}, activation, residual, out, border,
                                   value_at);
                };
                const T* in = x.at(image, pool ? 2 * row : row);
                if (pool)
                    line([&](int64_t column, int64_t channel, auto lanes) {
                        return max_of_windows(in + 2 * column * x.pixel + channel, x, lanes).values();
                    });
                else
                    line([&](int64_t column, int64_t channel, auto lanes) {
                        return load(in + column * x.pixel + channel, lanes);
                    });
            });
    });
}

// Write the zeros of x's gradient that no window holds: an odd last column of two rows, an odd last row below them.
template <class T> void clear_odd(Shape shape, View<T> x, int64_t height, int64_t width, T* top, bool last) {
    const int64_t pixel = shape.channels * sizeof(T);
    for (int64_t row = 0; row < 2 && width % 2; row++) std::memset(top + row * x.row + (width - 1) * x.pixel, 0, pixel);
    if (last && height % 2) std::memset(top + 2 * x.row, 0, width * pixel);
}

// masked: where the gradient of the sum is written if the activation came after it; the activation is none then.
template <class T>
void backward(Shape shape, View<const T> gradient, View<const T> in, View<const uint8_t> argmax, View<const T> result,
              View<T> masked, View<T> x,
              int64_t height, int64_t width, const float* mean, const float* var, const float* bias, const float* scale,
              float* bias_gradient, float* scale_gradient, int64_t activation_number, double alpha, double eps,
              int64_t threads) {
    const int64_t channels = shape.channels;
    std::vector<float> partial(shape.parts() * 2 * channels), factors(channels), sums(channels), products(channels);
    std::vector<Sums> threads_sums(threads, Sums(channels));
    View<const T> summed = gradient;
    if (masked.data) summed = {masked.data, masked.image, masked.row, masked.pixel};
    with_activation(activation_number, alpha, [&](auto activation) {
        // Call f(column, centered value, gradient before the activation) for a line's vectors of some channels; with
        // MASK the gradient is zero where the result is, of either sign, and is written.
        auto for_slopes = [&](auto MASK, View<const T> gradient, int64_t image, int64_t row, const float* means,
                              int64_t channel, auto lanes, auto f) {
            typedef typename InMemory<T>::Vector Vector;
            Floats middle = load(means + channel, lanes), factor = load(&factors[channel], lanes);
            Floats offset = load(bias + channel, lanes);
            const T *values = in.at(image, row) + channel, *slopes = gradient.at(image, row) + channel;
            for (int64_t column = 0; column < shape.columns; column++) {
                Floats centered = load(values + column * in.pixel, lanes) - middle;
                Floats slope = activation.slope(centered * factor + offset);
                Vector bits = read<Vector>(slopes + column * gradient.pixel, lanes);
                if (MASK) {
                    Vector sum = read<Vector>(result.at(image, row) + column * result.pixel + channel, lanes);
                    bits &= bits_as<Vector>(sum + sum != 0);
                    write(masked.at(image, row) + column * masked.pixel + channel, bits, lanes);
                }
                f(column, centered, slope * InMemory<T>::values(bits));
            }
        };
#pragma omp parallel num_threads(threads)
        {
            Sums& own = threads_sums[omp_get_thread_num()];
            for (int64_t group = 0; group < shape.groups; group++) {
                const float *means = mean + group * channels, *vars = var + group * channels;
#pragma omp for
                for (int64_t channel = 0; channel < channels; channel++)
                    factors[channel] = factor_of(vars[channel], eps, scale, channel);
#pragma omp for schedule(dynamic)
                for (int64_t part = 0; part < shape.parts(); part++) {
                    own.clear();
                    shape.for_lines(group, part, [&](int64_t image, int64_t row, int64_t) {
                        for_channels(channels, [&](auto lanes, int64_t channel, int64_t vector) {
                            Floats sum{}, product{};
                            auto add = [&](int64_t, Floats centered, Floats slope) {
                                sum += slope;
                                product += slope * centered;
                            };
                            if (std::is_same<decltype(activation), Same>::value && masked.data)
                                for_slopes(std::true_type(), gradient, image, row, means, channel, lanes, add);
                            else
                                for_slopes(std::false_type(), gradient, image, row, means, channel, lanes, add);
                            own.first[vector] += sum;
                            own.second[vector] += product;
                        });
                    });
                    for_channels(channels, [&](auto lanes, int64_t channel, int64_t vector) {
                        float* place = &partial[part * 2 * channels + channel];
                        store(place, own.first[vector], lanes);
                        store(place + channels, own.second[vector], lanes);
                    });
                }
#pragma omp for
                for (int64_t channel = 0; channel < channels; channel++) {
                    double sum = 0, product = 0, deviation = 1 / std::sqrt(vars[channel] + float(eps));
                    for (int64_t part = 0; part < shape.parts(); part++) {
                        sum += partial[2 * part * channels + channel];
                        product += partial[(2 * part + 1) * channels + channel];
                    }
                    bias_gradient[channel] += float(sum);
                    scale_gradient[channel] += float(product * deviation);
                    sums[channel] = float(sum / double(shape.values()));
                    products[channel] = float(product * deviation * deviation / double(shape.values()));
                }
#pragma omp for schedule(dynamic)
                for (int64_t part = 0; part < shape.parts(); part++)
                    shape.for_lines(group, part, [&](int64_t image, int64_t row, int64_t) {
                        T* line = x.at(image, argmax.data ? 2 * row : row);
                        for_channels(channels, [&](auto lanes, int64_t channel, int64_t) {
                            Floats sum = load(&sums[channel], lanes), product = load(&products[channel], lanes);
                            Floats factor = load(&factors[channel], lanes);
                            auto total = [&](Floats centered, Floats slope) {
                                return (slope - (centered * product + sum)) * factor;
                            };
                            if (!argmax.data) {
                                for_slopes(std::false_type(), summed, image, row, means, channel, lanes,
                                           [&](int64_t column, Floats centered, Floats slope) {
                                               store(line + column * x.pixel + channel, total(centered, slope), lanes);
                                           });
                                return;
                            }
                            const uint8_t* places = argmax.at(image, row) + channel;
                            for_slopes(std::false_type(), summed, image, row, means, channel, lanes,
                                       [&](int64_t column, Floats centered, Floats slope) {
                                           auto bits = InMemory<T>::rounded(total(centered, slope));
                                           auto place = InMemory<T>::of_bytes(
                                               read<Bytes>(places + column * argmax.pixel, lanes));
                                           T* corner = line + 2 * column * x.pixel + channel;
                                           write(corner, (place == 0) & bits, lanes);
                                           write(corner + x.pixel, (place == 1) & bits, lanes);
                                           write(corner + x.row, (place == 2) & bits, lanes);
                                           write(corner + x.row + x.pixel, (place == 3) & bits, lanes);
                                       });
                        });
                        if (argmax.data) clear_odd(shape, x, height, width, line, row == shape.rows - 1);
                    });
            }
        }
    });
}

// Return 0, or 1 where memory ran out. f allocates before its threads start: an exception must not leave one.
template <class F> int status_of(F f) {
    try {
        f();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

#define FUNCTIONS(T)                                                                                                  \
    extern "C" int forward_##T(int64_t images, int64_t channels, int64_t rows, int64_t columns, int64_t groups,       \
                               View<const T> x, View<T> pooled, View<uint8_t> argmax, View<const T> residual,         \
                               View<T> out, const float* bias, const float* scale, float* mean, float* var,           \
                               int64_t activation, double alpha, double eps, int64_t border, int64_t threads) {       \
        return status_of([&] {                                                                                        \
            forward<T>({images, channels, rows, columns, groups}, x, pooled, argmax, residual, out, bias, scale,      \
                       mean, var, activation, alpha, eps, border, threads);                                           \
        });                                                                                                           \
    }                                                                                                                 \
    extern "C" int inference_##T(int64_t images, int64_t channels, int64_t rows, int64_t columns, View<const T> x,    \
                                 View<const T> residual, View<T> out, const float* mean, const float* var,            \
                                 const float* bias, const float* scale, int64_t activation, double alpha,             \
                                 int64_t pool, double eps, int64_t border, int64_t threads) {                         \
        return status_of([&] {                                                                                        \
            inference<T>({images, channels, rows, columns, 1}, x, residual, out, mean, var, bias, scale, activation,  \
                     alpha, pool, eps, border, threads);                                                              \
        });                                                                                                           \
    }                                                                                                                 \
    extern "C" int backward_##T(int64_t images, int64_t channels, int64_t rows, int64_t columns, int64_t groups,      \
                                View<const T> gradient, View<const T> in, View<const uint8_t> argmax,                 \
                                View<const T> result, View<T> masked, View<T> x,                                      \
                                int64_t height, int64_t width, const float* mean, const float* var,                   \
                                const float* bias, const float* scale, float* bias_gradient, float* scale_gradient,   \
                                int64_t activation, double alpha, double eps, int64_t threads) {                      \
        return status_of([&] {                                                                                        \
            backward<T>({images, channels, rows, columns, groups}, gradient, in, argmax, result, masked, x, height,   \
                        width, mean, var, bias, scale, bias_gradient, scale_gradient, activation, alpha, eps,         \
                        threads);                                                                                     \
        });                                                                                                           \
    }

FUNCTIONS(float)
FUNCTIONS(bfloat16)
