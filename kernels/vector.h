// What the C++ kernels share: vectors of channels, and bfloat16 as the upper half of a float.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct bfloat16 {
    uint16_t bits;
};

// The lanes of a vector that are channels: all, or the first `count`.
struct All {
    int64_t bytes(int64_t size) const { return LANES * size; }
};
struct Some {
    int64_t count;
    int64_t bytes(int64_t size) const { return count * size; }
};

// Call f(lanes, first channel, number of the vector) for vectors that together are all channels. Where their number
// is no multiple of LANES the last vector begins early: f must write the same to a channel both times.
template <class F> inline void for_channels(int64_t channels, F f) {
    if (channels < LANES) return f(Some{channels}, int64_t(0), int64_t(0));
    int64_t vectors = channels / LANES;
    for (int64_t number = 0; number < vectors; number++) f(All{}, number * LANES, number);
    if (channels % LANES) f(All{}, channels - LANES, vectors);
}

inline int64_t vectors_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

template <class To, class From> inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class Vector, class T, class Lanes> inline Vector read(const T* place, Lanes lanes) {
    Vector vector{};
    std::memcpy(&vector, place, lanes.bytes(sizeof(T)));
    return vector;
}

template <class Lanes> inline Floats load(const float* place, Lanes lanes) { return read<Floats>(place, lanes); }
template <class Lanes> inline Floats load(const bfloat16* place, Lanes lanes) {
    return bits_as<Floats>(__builtin_convertvector(read<Halves>(place, lanes), Bits) << 16);
}
template <class Lanes> inline Ints load(const uint8_t* place, Lanes lanes) {
    return __builtin_convertvector(read<Bytes>(place, lanes), Ints);
}

template <class Lanes> inline void store(float* place, Floats values, Lanes lanes) {
    std::memcpy(place, &values, lanes.bytes(4));
}
// To the nearest, ties to even, as torch rounds; NaN stays NaN.
template <class Lanes> inline void store(bfloat16* place, Floats values, Lanes lanes) {
    Bits bits = bits_as<Bits>(values);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    Halves rounded = __builtin_convertvector(values != values ? 0x7FC0 | (bits & 0) : bits, Halves);
    std::memcpy(place, &rounded, lanes.bytes(2));
}
template <class Lanes> inline void store(uint8_t* place, Ints values, Lanes lanes) {
    Bytes narrow = __builtin_convertvector(values, Bytes);
    std::memcpy(place, &narrow, lanes.bytes(1));
}

// Images as `cpp.view` gives them: the channels of a pixel follow one another. Distances are in elements.
template <class T> struct View {
    T* data;
    int64_t image, row, pixel;
    T* at(int64_t image_number, int64_t row_number) const { return data + image_number * image + row_number * row; }
};
