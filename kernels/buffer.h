// Memory of a kernel's own.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

struct Free {
    void operator()(void* place) const { std::free(place); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;

// Memory for a vector's aligned loads, unwritten; null where there is none.
template <class T> inline Buffer<T> allocate(int64_t length) {
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, (length * sizeof(T) + 63) / 64 * 64)));
}

inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
