// bfloat16 as the upper half of a float.

#pragma once

#include <cstdint>
#include <cstring>

struct bfloat16 {
    uint16_t bits;
};

template <class To, class From> inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The bits of bfloat16, of a float or a vector of them: rounded to the nearest, ties to even, as torch rounds. NaN stays.
template <class Bits, class Values> inline Bits upper_half(Values values) {
    Bits bits = bits_as<Bits>(values);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return values != values ? 0x7FC0 | (bits & 0) : bits;
}
