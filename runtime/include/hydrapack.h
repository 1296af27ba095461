/* C interface of the runtime, for JNI, Swift and other languages; session.h and engine.h say more of
 * each call.
 *
 * Handles are opaque; a function that can fail returns a code (0 is success), and
 * hydrapack_last_error says why, for the calling thread. A session is for one thread at a time
 * (HYDRAPACK_BUSY); hydrapack_stop, _position, _current_task, _get_stats and what never changes may
 * be called from any thread until hydrapack_close, which must be the last call. Calls on an engine
 * are for any thread; sessions of one engine may run on threads of their own.
 *
 * Structs begin with struct_size, the caller's sizeof, so that later versions can add fields: the
 * library reads and writes so many bytes and no more, and takes fields beyond them as their defaults.
 * It must end with a field that the library knows; 0, or more than the library's own, is
 * HYDRAPACK_INVALID. hydrapack_default_... set it. */
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

/* What sessions of one model and package share, and a session. */
typedef struct hydrapack_engine hydrapack_engine;
typedef struct hydrapack_session hydrapack_session;

enum {
  HYDRAPACK_OK = 0,
  HYDRAPACK_NOT_FOUND = 1,    /* a file or a task that is not there */
  HYDRAPACK_INVALID = 2,      /* a malformed file, an argument out of range */
  HYDRAPACK_MISMATCH = 3,     /* files that do not belong together; a digest or signature */
  HYDRAPACK_CONTEXT_FULL = 4, /* no room for more tokens */
  HYDRAPACK_BUSY = 5,         /* in use by another thread, or by a running answer's own callback */
  HYDRAPACK_IO = 6,           /* it is there but cannot be read */
  HYDRAPACK_RUNTIME = 7       /* ExecuTorch failed while running, or memory ran out */
};

/* Why an answer ended. */
enum {
  HYDRAPACK_FINISH_STOP = 0,    /* an end token, a stop id or a stop string */
  HYDRAPACK_FINISH_LENGTH = 1,  /* max_new_tokens */
  HYDRAPACK_FINISH_CONTEXT = 2, /* the context is full */
  HYDRAPACK_FINISH_STOPPED = 3  /* the callback said no, or hydrapack_stop was called */
};

typedef struct {
  size_t struct_size;
  int check_digests;      /* compare SHA-256 digests, a head's when it is first used; 1 by default. 2:
                           * of all heads when opening, which reads the whole of adapters.pte */
  const char* public_key; /* 64 hex digits: manifest.sig must be this key's; null asks for none */
  /* A folder of the app's own where XNNPACK's packed weights are kept, so that the next open maps
   * them; null: none. Nobody else may write to it. */
  const char* weight_cache;
  int share_weights; /* without such a folder: one packed copy in memory for all sessions of one model,
                      * one model at a time; 0 by default */
  /* Replay the golden outputs first, as hydrapack_self_test: Mismatch where one differs, NotFound where
   * the package has none; 0 by default. 64 bits, since 32 would lie in the padding of shorter structs. */
  int64_t self_test;
} hydrapack_open_options;

/* How hydrapack_step chooses among the logits. */
typedef struct {
  size_t struct_size;
  float temperature; /* 0 to 100; 0 is greedy */
  int64_t top_k;     /* 0 for all */
  float top_p;       /* above 0, at most 1 for all */
} hydrapack_sampling;

/* Return 0 to stop. */
typedef int (*hydrapack_callback)(int64_t token, void* user);

/* The bytes of a token as text, and their number in size; null for none. Read before it is called
 * again. */
typedef const char* (*hydrapack_token_text)(int64_t token, size_t* size, void* user);

/* A golden token that came out otherwise: its task, its prompt's place among the task's and its own in
 * the answer, both from 0, and by how many logits it led when it was packed. */
typedef void (*hydrapack_difference)(
    const char* task,
    int64_t prompt,
    int64_t token,
    int64_t expected,
    int64_t found,
    double margin,
    void* user);

/* Negative values: the task's own, or the bare base model's (128 tokens, greedy). */
typedef struct {
  size_t struct_size;
  int64_t max_new_tokens;
  float temperature;
  int64_t top_k;
  float top_p;
  uint64_t seed;
  int lookup; /* not 0: guess tokens from the text so far and check several a call */
  const int64_t* stop_ids; /* end the answer as the model's end tokens do; null: none given */
  size_t stop_count;
  /* With it the session finds the task's stop strings itself. Null: a task that has stop strings
   * needs stop_ids, which may point to an empty list, if the caller looks for the strings. */
  hydrapack_token_text token_text;
  void* token_text_user;
} hydrapack_options;

typedef struct {
  size_t struct_size;
  double load_ms, swap_ms, prefill_ms, decode_ms;
  int64_t prefill_tokens, decode_tokens, decode_calls;
  int64_t model_bytes, adapter_bytes, resident_bytes;
} hydrapack_stats;

/* The message of the last failure on this thread; never null, valid until its next call. */
HYDRAPACK_API const char* hydrapack_last_error(void);
/* NotFound, Invalid, ...; "" for what is no code. */
HYDRAPACK_API const char* hydrapack_code_name(int code);
/* stop, length, context, stopped; "" for what is none. */
HYDRAPACK_API const char* hydrapack_finish_name(int finish);

/* The defaults in a struct of struct_size bytes, which is set too; of hydrapack_options all are the
 * task's own. For callers without C's inline functions below. */
HYDRAPACK_API int hydrapack_init_open_options(hydrapack_open_options* options, size_t struct_size);
HYDRAPACK_API int hydrapack_init_sampling(hydrapack_sampling* sampling, size_t struct_size);
HYDRAPACK_API int hydrapack_init_options(hydrapack_options* options, size_t struct_size);

/* Structs of the header's own size: inline, since a caller compiled with another header has another.
 * What a library of an older version cannot set up, it refuses when it is used. */
static inline hydrapack_open_options hydrapack_default_open_options(void) {
  hydrapack_open_options options;
  (void)hydrapack_init_open_options(&options, sizeof options);
  return options;
}
static inline hydrapack_sampling hydrapack_default_sampling(void) {
  hydrapack_sampling sampling;
  (void)hydrapack_init_sampling(&sampling, sizeof sampling);
  return sampling;
}
static inline hydrapack_options hydrapack_default_options(void) {
  hydrapack_options options;
  (void)hydrapack_init_options(&options, sizeof options);
  return options;
}

/* What sessions share, opened and checked once. package may be "": the bare base model alone.
 * options may be null: the default ones. */
HYDRAPACK_API int hydrapack_engine_open(
    const char* model,
    const char* package,
    const hydrapack_open_options* options,
    hydrapack_engine** engine);
/* A session on it, with a text of its own. */
HYDRAPACK_API int hydrapack_engine_session(
    const hydrapack_engine* engine, hydrapack_session** session);
/* Its sessions hold what they need: it may be closed before them. */
HYDRAPACK_API void hydrapack_engine_close(hydrapack_engine* engine);

/* An update, as hydrapack diff writes it: target, which may be package itself, becomes the new package
 * in one step, or stays as it is. public_key: 64 hex digits that must have signed it; null asks for
 * none (hydrapack/patch.h). */
HYDRAPACK_API int hydrapack_apply_patch(
    const char* package, const char* patch, const char* target, const char* public_key);

/* A session with an engine of its own; arguments as of hydrapack_engine_open. */
HYDRAPACK_API int hydrapack_open(
    const char* model,
    const char* package,
    const hydrapack_open_options* options,
    hydrapack_session** session);
HYDRAPACK_API void hydrapack_close(hydrapack_session* session);

/* packages/current becomes a copy of package, and packages/previous what it was; package may be
 * packages/previous, the way back (hydrapack/activation.h). */
HYDRAPACK_API int hydrapack_activate(const char* packages, const char* package);
/* A session on packages/current, self-tested; where it does not open, on packages/previous, and
 * fell_back, which may be null, is 1. The error is the current one's. */
HYDRAPACK_API int hydrapack_open_last_good(
    const char* model,
    const char* packages,
    const hydrapack_open_options* options,
    hydrapack_session** session,
    int* fell_back);

/* Replay the package's golden outputs; the bare base model is in use afterwards. It passes where there
 * are no differences, each of which callback gets. All but session may be null. */
HYDRAPACK_API int hydrapack_self_test(
    hydrapack_session* session,
    hydrapack_difference callback,
    void* user,
    size_t* tokens,    /* compared */
    size_t* near_ties, /* other tokens that pass */
    size_t* differences);

HYDRAPACK_API size_t hydrapack_task_count(const hydrapack_session* session);
/* Null if there is no such index; valid until the session is closed. */
HYDRAPACK_API const char* hydrapack_task_name(const hydrapack_session* session, size_t index);
HYDRAPACK_API const char* hydrapack_task_prompt(const hydrapack_session* session, size_t index);
/* "" if unknown. */
HYDRAPACK_API const char* hydrapack_task_language(const hydrapack_session* session, size_t index);
HYDRAPACK_API size_t hydrapack_task_stop_count(const hydrapack_session* session, size_t index);
HYDRAPACK_API const char* hydrapack_task_stop(
    const hydrapack_session* session, size_t index, size_t stop);
/* What negative options stand for, in a struct whose struct_size is set; its other fields are the
 * default ones afterwards. NotFound: no such index. */
HYDRAPACK_API int hydrapack_task_defaults(
    const hydrapack_session* session, size_t index, hydrapack_options* options);

/* task may be null: the bare base model. */
HYDRAPACK_API int hydrapack_use(hydrapack_session* session, const char* task);
/* The first keep_prefix positions stay, if they were computed under the same head. */
HYDRAPACK_API int hydrapack_use_keeping(
    hydrapack_session* session, const char* task, int64_t keep_prefix);
/* The task in use; null for the bare base model. Valid until the session is closed. */
HYDRAPACK_API const char* hydrapack_current_task(const hydrapack_session* session);

HYDRAPACK_API int hydrapack_prefill(hydrapack_session* session, const int64_t* ids, size_t count);
/* sampling may be null: greedy. An end token is given as any other. */
HYDRAPACK_API int hydrapack_step(
    hydrapack_session* session, const hydrapack_sampling* sampling, int64_t* token);
/* Start the draws of the steps that follow anew. */
HYDRAPACK_API int hydrapack_seed(hydrapack_session* session, uint64_t seed);
/* The logits after the text, hydrapack_vocab_size of them, valid until the next call. */
HYDRAPACK_API int hydrapack_logits(hydrapack_session* session, const float** logits);

/* options, callback, made and finish may be null; without options, the task's own. made: tokens that
 * the callback got, or would have. finish: one of HYDRAPACK_FINISH_. */
HYDRAPACK_API int hydrapack_generate(
    hydrapack_session* session,
    const int64_t* ids,
    size_t count,
    const hydrapack_options* options,
    hydrapack_callback callback,
    void* user,
    size_t* made,
    int* finish);
/* End the answer being made, from any thread; nothing if none is. */
HYDRAPACK_API void hydrapack_stop(hydrapack_session* session);

HYDRAPACK_API int hydrapack_reset(hydrapack_session* session);
HYDRAPACK_API int64_t hydrapack_position(const hydrapack_session* session);
HYDRAPACK_API int64_t hydrapack_max_context(const hydrapack_session* session);
HYDRAPACK_API int64_t hydrapack_vocab_size(const hydrapack_session* session);
/* Into a struct whose struct_size is set. */
HYDRAPACK_API int hydrapack_get_stats(const hydrapack_session* session, hydrapack_stats* stats);

#ifdef __cplusplus
}
#endif
#endif
