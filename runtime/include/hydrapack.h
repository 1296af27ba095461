/* C interface of the runtime, for JNI, Swift and other languages. Handles are opaque; a function that
 * can fail returns a code (0 is success), and hydrapack_last_error says why, for the calling thread. */
#ifndef HYDRAPACK_H
#define HYDRAPACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define HYDRAPACK_API __attribute__((visibility("default")))
#else
#define HYDRAPACK_API
#endif

typedef struct hydrapack_session hydrapack_session;

enum {
  HYDRAPACK_OK = 0,
  HYDRAPACK_NOT_FOUND = 1,
  HYDRAPACK_INVALID = 2,
  HYDRAPACK_MISMATCH = 3,
  HYDRAPACK_CONTEXT_FULL = 4,
  HYDRAPACK_BUSY = 5,
  HYDRAPACK_RUNTIME = 6
};

typedef struct {
  int64_t max_new_tokens;
  float temperature; /* 0 is greedy */
  int64_t top_k;     /* 0 for all */
  float top_p;       /* 1 for all */
  uint64_t seed;
  const int64_t* stop_ids; /* beside the model's end tokens; may be null */
  size_t stop_count;
} hydrapack_options;

typedef struct {
  double load_ms, swap_ms, prefill_ms, decode_ms;
  int64_t prefill_tokens, decode_tokens;
  int64_t model_bytes, vector_bytes, resident_bytes;
} hydrapack_stats;

/* Return 0 to stop. */
typedef int (*hydrapack_callback)(int64_t token, void* user);

/* The message of the last failure on this thread; never null, valid until its next call. */
HYDRAPACK_API const char* hydrapack_last_error(void);

HYDRAPACK_API hydrapack_options hydrapack_default_options(void);

HYDRAPACK_API int hydrapack_open(
    const char* model, const char* package, int check_digests, hydrapack_session** session);
HYDRAPACK_API void hydrapack_close(hydrapack_session* session);

HYDRAPACK_API size_t hydrapack_task_count(const hydrapack_session* session);
/* Null if there is no such index. */
HYDRAPACK_API const char* hydrapack_task_name(const hydrapack_session* session, size_t index);
HYDRAPACK_API const char* hydrapack_task_prompt(const hydrapack_session* session, size_t index);

/* task may be null: the bare base model. */
HYDRAPACK_API int hydrapack_use(hydrapack_session* session, const char* task);
HYDRAPACK_API int hydrapack_prefill(hydrapack_session* session, const int64_t* ids, size_t count);
HYDRAPACK_API int hydrapack_step(
    hydrapack_session* session, const hydrapack_options* options, int64_t* token);
/* options, callback and count may be null. */
HYDRAPACK_API int hydrapack_generate(
    hydrapack_session* session,
    const int64_t* ids,
    size_t count,
    const hydrapack_options* options,
    hydrapack_callback callback,
    void* user,
    size_t* made);
HYDRAPACK_API int hydrapack_reset(hydrapack_session* session);
HYDRAPACK_API int64_t hydrapack_position(const hydrapack_session* session);
HYDRAPACK_API int64_t hydrapack_max_context(const hydrapack_session* session);
HYDRAPACK_API void hydrapack_get_stats(const hydrapack_session* session, hydrapack_stats* stats);

#ifdef __cplusplus
}
#endif
#endif
