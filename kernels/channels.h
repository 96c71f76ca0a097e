// Images in memory as C++ kernels read and write them, a vector of channels at a time.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef int16_t Shorts __attribute__((vector_size(LANES * 2)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

// The lanes of a vector that are channels: all, or the first `count`.
struct All {
    int64_t bytes(int64_t size) const { return LANES * size; }
};
struct Some {
    int64_t count;
    int64_t bytes(int64_t size) const { return count * size; }
};

inline int64_t vectors_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

// Call f(lanes, first channel, number of the vector) for vectors that together are all channels. Where their number
// is no multiple of LANES the last vector begins early: f must write the same to a channel both times.
template <class F> inline void for_channels(int64_t channels, F f) {
    if (channels < LANES) return f(Some{channels}, int64_t(0), int64_t(0));
    for (int64_t number = 0; number < vectors_of(channels); number++)
        f(All{}, std::min(number * LANES, channels - LANES), number);
}

template <class Vector, class T, class Lanes> inline Vector read(const T* place, Lanes lanes) {
    Vector vector{};
    std::memcpy(&vector, place, lanes.bytes(sizeof(T)));
    return vector;
}

// In one instruction each where GCC 12 takes five for `__builtin_convertvector`.
#ifdef __AVX512F__
inline Bits widened(Halves values) { return bits_as<Bits>(_mm512_cvtepu16_epi32(bits_as<__m256i>(values))); }
inline Bits widened(Bytes values) { return bits_as<Bits>(_mm512_cvtepu8_epi32(bits_as<__m128i>(values))); }
inline Halves narrowed(Bits values) { return bits_as<Halves>(_mm512_cvtepi32_epi16(bits_as<__m512i>(values))); }
#else
inline Bits widened(Halves values) { return bits_as<Bits>(_mm256_cvtepu16_epi32(bits_as<__m128i>(values))); }
inline Bits widened(Bytes values) {
    return bits_as<Bits>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(values))));
}
inline Halves narrowed(Bits values) { return __builtin_convertvector(values, Halves); }
#endif

// The bits of a vector in memory. `is_greater` compares what `ordered` makes of them, and is true of NaN, which pools
// keep.
template <class T> struct InMemory;
template <> struct InMemory<float> {
    typedef Bits Vector;
    static Floats values(Bits bits) { return bits_as<Floats>(bits); }
    static Bits rounded(Floats values) { return bits_as<Bits>(values); }
    static Bits of_bytes(Bytes bytes) { return widened(bytes); }
    static Floats ordered(Bits bits) { return values(bits); }
    static Ints is_greater(Floats one, Floats other) { return (one > other) | (one != one); }
};
template <> struct InMemory<bfloat16> {
    typedef Halves Vector;
    static Floats values(Halves bits) { return bits_as<Floats>(widened(bits) << 16); }
    static Halves rounded(Floats values) { return narrowed(upper_half<Bits>(values)); }
    static Halves of_bytes(Bytes bytes) { return __builtin_convertvector(bytes, Halves); }
    static Shorts is_greater(Shorts one, Shorts other) { return one > other; }
    // Whole numbers in the order of the values, 0 for both zeros, NaN above all: 128 less than sign and magnitude, so
    // that NaNs below minus infinity wrap around.
    static Shorts ordered(Halves bits) {
        Halves sign = bits_as<Halves>(bits_as<Shorts>(bits) >> 15);
        return bits_as<Shorts>(((bits & 0x7FFF) ^ sign) - sign - 128);
    }
};

template <class T, class Lanes> inline Floats load(const T* place, Lanes lanes) {
    return InMemory<T>::values(read<typename InMemory<T>::Vector>(place, lanes));
}

template <class T, class Vector, class Lanes> inline void write(T* place, Vector bits, Lanes lanes) {
    std::memcpy(place, &bits, lanes.bytes(sizeof(T)));
}

template <class T, class Lanes> inline void store(T* place, Floats values, Lanes lanes) {
    write(place, InMemory<T>::rounded(values), lanes);
}

// Images as `cpp.view` gives them: the channels of a pixel follow one another. Distances are in elements.
template <class T> struct View {
    T* data;
    int64_t image, row, pixel;
    T* at(int64_t image_number, int64_t row_number) const { return data + image_number * image + row_number * row; }
};
