// Activations and their slopes for the C++ kernels, exact to 1e-6; NaN stays NaN.

#pragma once

#include "channels.h"

inline Floats limited(Floats x, float low, float high) {
    Floats least = low - Floats{}, most = high - Floats{};
    x = x < least ? least : x;
    return x > most ? most : x;
}

template <int COUNT> inline Floats polynomial(Floats x, const float (&coefficients)[COUNT]) {
    Floats sum = coefficients[0] - Floats{};
    for (int number = 1; number < COUNT; number++) sum = sum * x + coefficients[number];
    return sum;
}

constexpr float LOG2_E = 1.44269504f;

// 2^x as 2^whole * 2^rest, the second by a polynomial fitted for the least error, 1e-7. Within 2^-126 and 2^127.
inline Floats power_of_2(Floats x) {
    x = limited(x, -126.0f, 127.0f);
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number
    Floats shifted = x + MAGIC;
    Floats value = polynomial(x - (shifted - MAGIC), {0.00132647265f, 0.00967151307f, 0.0555073375f, 0.240222421f,
                                                      0.693146978f, 1.0f});
    return value * bits_as<Floats>((bits_as<Bits>(shifted) << 23) + 0x3F800000);
}

struct Celu {
    float alpha, inverse;
    explicit Celu(float alpha) : alpha(alpha), inverse(LOG2_E / alpha) {}
    Floats value(Floats y) const { return y > 0 ? y : alpha * slope(y) - alpha; }
    Floats slope(Floats y) const { return power_of_2((y > 0 ? Floats{} : y) * inverse); }
};

struct Relu {
    Floats value(Floats y) const { return y < 0 ? Floats{} : y; }
    Floats slope(Floats y) const { return y <= 0 ? Floats{} : Floats{} + 1; }
};

// Less 1/2, both the normal distribution function and GELU's slope are odd: y times polynomials in y^2, fitted for the
// least error up to 5.5, beyond which the first is 0 or 1 to 2e-8, the second to 6e-7.
struct Gelu {
    static constexpr float FAR = 5.5f;
    template <int COUNT> static Floats odd(Floats y, const float (&coefficients)[COUNT]) {
        Floats near = limited(y, -FAR, FAR);
        Floats sum = 0.5f + near * polynomial(near * near * (2 / (FAR * FAR)) - 1, coefficients);
        return y < -FAR ? Floats{} : sum;
    }
    Floats value(Floats y) const {
        return y * odd(y, {0.000538062107f, -0.00136882405f, 0.00102389735f, -0.00122941688f, 0.00423630929f,
                           -0.00767465234f, 0.0104686669f, -0.0146713755f, 0.0202879663f, -0.0261124661f,
                           0.0320817436f, -0.0387872671f, 0.0477369896f, -0.064172475f, 0.128551937f});
    }
    Floats slope(Floats y) const {
        return odd(y, {-0.00490969184f, 0.0121201959f, -0.00642552635f, 0.00410087578f, -0.0278227466f,
                       0.0495662354f, -0.0530867568f, 0.0606565588f, -0.0729192375f, 0.0753351402f, -0.0688572006f,
                       0.0601872351f, -0.0537258207f, 0.0536708724f, -0.0657401402f, 0.128759168f});
    }
};

// Beyond 88 the sigmoid is 0 or 1 in float32. Minus infinity gives -0, where torch has NaN.
struct Silu {
    static constexpr float FAR = 88;
    Floats value(Floats y) const {
        y = limited(y, -FAR, __builtin_inff());
        return y / (1 + power_of_2(y * -LOG2_E));
    }
    Floats slope(Floats y) const {
        y = limited(y, -FAR, FAR);
        Floats sigmoid = 1 / (1 + power_of_2(y * -LOG2_E));
        return sigmoid * (1 + y * (1 - sigmoid));
    }
};

// Of the sum with the residual, where others are added to it.
struct SumRelu : Relu {};

struct Same {
    Floats value(Floats y) const { return y; }
    Floats slope(Floats y) const { return Floats{} + 1; }
};

// Call f(activation) for the number of an activation in norm_act_pool's ACTIVATIONS.
template <class F> inline void with_activation(int64_t number, double alpha, F f) {
    switch (number) {
        case 0: return f(Celu{float(alpha)});
        case 1: return f(Relu{});
        case 2: return f(Gelu{});
        case 3: return f(Silu{});
        case 5: return f(SumRelu{});
        default: return f(Same{});
    }
}
