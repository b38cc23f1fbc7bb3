/* What the kernel needs of the C library, which WebAssembly has instructions for. */
#ifndef DYNENC_WEB_STRING_H
#define DYNENC_WEB_STRING_H

#include <stddef.h>

#define memcpy __builtin_memcpy
#define memmove __builtin_memmove
#define memset __builtin_memset

#endif
