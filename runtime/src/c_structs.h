// Structs of the C interface across versions: a caller's may be shorter than the library's.
#pragma once

#include <cstddef>

#include <hydrapack.h>
#include <hydrapack/result.h>

namespace hydrapack {

// The defaults, in a struct of the library's own size.
template <typename Struct>
Struct defaults();

// Defaults and, over them, the fields that the caller's struct has; null has none. Invalid: its
// struct_size.
template <typename Struct>
Result<Struct> taken(const Struct* given);

// The fields that the caller's struct has, from ours. Invalid: its struct_size, and nothing is written.
template <typename Struct>
Error give(const Struct& own, Struct* to);

// The defaults in a struct of the caller's size. Invalid: the size; a later use is refused as well.
template <typename Struct>
Error initialize(Struct* to, size_t size);

}  // namespace hydrapack
