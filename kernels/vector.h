// bfloat16 as the upper half of a float.

#pragma once

#include <cstdint>
#include <cstring>

struct bfloat16 {
    uint16_t bits;
};

// A float's bits and back, in forms that compilers turn into vector instructions.
inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float load(const float* place) { return *place; }
inline float load(const bfloat16* place) { return float_of(uint32_t(place->bits) << 16); }

inline void store(float* place, float value) { *place = value; }

// To the nearest, ties to even, as torch rounds; NaN stays NaN.
inline void store(bfloat16* place, float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    place->bits = uint16_t(value != value ? 0x7FC0 : rounded);
}
