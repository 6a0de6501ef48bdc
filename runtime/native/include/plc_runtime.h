/* plc_runtime.h: answers requests from bundles that `plc export` wrote, in C99 and in all that can
 * call it.
 *
 *     #include <plc_runtime.h>
 *     #include <stdio.h>
 *
 *     static int print(void* user, const plc_event* event) {
 *       size_t length;
 *       const char* text = plc_event_text(event, &length);
 *       fwrite(text, 1, length, user);
 *       return 0;
 *     }
 *
 *     int main(void) {
 *       plc_engine* engine;
 *       if (plc_engine_open("bundle", NULL, &engine) != PLC_OK) {
 *         fprintf(stderr, "%s\n", plc_last_error());
 *         return 1;
 *       }
 *       plc_field field = {"text", "It works.", PLC_LENGTH_OF_TEXT};
 *       plc_request request = PLC_REQUEST_INIT;
 *       request.task = "mood";
 *       request.fields = &field;
 *       request.field_count = 1;
 *       if (plc_generate(engine, &request, print, stdout) != PLC_OK)
 *         fprintf(stderr, "%s\n", plc_last_error());
 *       plc_engine_close(engine);
 *       return 0;
 *     }
 *
 * Threads. Any function may be called from any thread. Requests of all threads share the slots of an
 * engine and step together, whichever thread runs the step; a request's answer is the same to the
 * last bit whatever runs beside it. The library starts no thread of its own; ONNX Runtime does
 * (`threads`). From inside a callback only `plc_event_...`, `plc_cancel`, `plc_last_error` and
 * `plc_abi_version` may be called, whatever the engine; other calls do nothing there, and give
 * PLC_ERROR_ARGUMENT, 0 or null.
 *
 * Memory. What a caller gives is copied before the call returns. What a caller is given lives as
 * long as the text beside it says, and is never freed by the caller unless a function says so.
 *
 * Errors. A call that can fail returns a plc_status. Then `plc_last_error` has a sentence for people.
 * Nothing is printed, nothing aborts, no exception leaves the library. Calls with a null pointer
 * where none is allowed give PLC_ERROR_ARGUMENT.
 *
 * Text is UTF-8. Bytes that are not UTF-8 are refused: in a request with PLC_ERROR_REQUEST, elsewhere
 * with PLC_ERROR_ARGUMENT.
 *
 * Structs that begin with `struct_size` may grow at their ends with later numbers of the interface.
 * What a caller's smaller one lacks has its default. A larger one is served where all bytes that this
 * library does not know are 0, and is refused where not.
 *
 * Not promised: that messages keep their words; that two engines of one process share memory; that
 * a bundle may be changed while it is open (its files are mapped: replace the folder instead).
 */
#ifndef PLC_RUNTIME_H
#define PLC_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PLC_API __declspec(dllexport)
#else
#define PLC_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows with each release that adds to this header. A library serves all callers that were compiled
 * with its number or a lower one. */
#define PLC_ABI_VERSION 1

/* The number that the library was built with. */
PLC_API uint32_t plc_abi_version(void);

typedef enum plc_status {
  PLC_OK = 0,
  PLC_ERROR_ARGUMENT = 1, /* a value or a call that is not allowed */
  PLC_ERROR_FILE = 2,     /* a file cannot be read */
  PLC_ERROR_FORMAT = 3,   /* a file was read, and is not what it should be */
  PLC_ERROR_RUNTIME = 4,  /* ONNX Runtime is missing, too old, or failed */
  PLC_ERROR_REQUEST = 5,  /* a request cannot be served as it is */
  PLC_ERROR_ANSWER = 6,   /* the base's numbers for a request are not finite */
  PLC_ERROR_ROOM = 7,     /* the caller's memory is too small; the count says what is needed */
  PLC_ERROR_MEMORY = 8,   /* no memory is left */
  PLC_CANCELLED = 9       /* the request was cancelled, or a callback ended it */
} plc_status;

/* What went wrong in this thread's last call that failed: what was being done, what was found, what
 * was expected, what to do next. Never null. It lives until the thread's next call that fails. */
PLC_API const char* plc_last_error(void);

typedef struct plc_engine plc_engine;
typedef struct plc_event plc_event;

/* For lengths: the text ends with a 0 byte. */
#define PLC_LENGTH_OF_TEXT ((size_t)-1)

/* ---- An engine: one or several bundles of one base ---------------------------------------------- */

/* Which files are read whole to compare their sums when a bundle is opened. Names, sizes and the
 * structure of all files are always checked. */
typedef enum plc_sums {
  PLC_SUMS_ALL = 0,
  PLC_SUMS_WITHOUT_BASE = 1 /* not those in base/: the largest ones */
} plc_sums;

/* Begin with PLC_OPTIONS_INIT, which has the defaults. Null means the default, too, and so does 0
 * except in `context_mib`. */
typedef struct plc_options {
  size_t struct_size;          /* sizeof(plc_options) */
  const char* onnxruntime;     /* libonnxruntime.so…; else $PLC_ONNXRUNTIME, $ORT_LIB_PATH, then the system's */
  int32_t threads;             /* of ONNX Runtime; all cores if 0 */
  int32_t max_batch;           /* most requests that step together; 16 if 0 */
  int32_t context_mib;         /* kept of prompts for later ones that begin alike; -1: an eighth of the
                                  caches; 0: nothing is kept */
  int32_t allow_failed_parity; /* not 0: also a bundle that its export marked as failed */
  int32_t drafts;              /* not 0: greedy answers draft what followed the same tokens before */
  plc_sums sums;
  const char* provider;         /* of ONNX Runtime: "cpu", "cuda", or a plug-in's; the bundle's if null */
  const char* provider_library; /* of a plug-in */
  const char* const* provider_options; /* name, value, name, value … */
  size_t provider_option_count;        /* pairs */
} plc_options;
#define PLC_OPTIONS_INIT {sizeof(plc_options), NULL, 0, 0, -1, 0, 0, PLC_SUMS_ALL, NULL, NULL, NULL, 0}

/* Opens a bundle. `options` may be null. On success `*engine` is to be closed; else it is null. */
PLC_API plc_status plc_engine_open(const char* bundle, const plc_options* options, plc_engine** engine);

/* Serves the tasks of another bundle of the same base, too. All are added or, where one is refused,
 * none. Requests that run go on. */
PLC_API plc_status plc_engine_add(plc_engine* engine, const char* bundle);

/* Serves a task no more. Its requests that wait or run are answered to their ends. */
PLC_API plc_status plc_engine_remove(plc_engine* engine, const char* task);

/* Ends all requests and frees everything; null is allowed. No other call with this engine may run or
 * come later, except those that are in `plc_generate`: they end with PLC_ERROR_ARGUMENT, and their
 * callbacks are given nothing more. It waits for callbacks that are running. Events that were polled
 * stay. Whoever exits without closing loses nothing but the answers. */
PLC_API void plc_engine_close(plc_engine* engine);

/* How many tasks there are, and their names; null where there is none at this place. A name lives as
 * long as the task is served. */
PLC_API size_t plc_task_count(const plc_engine* engine);
PLC_API const char* plc_task_name(const plc_engine* engine, size_t place);

/* The fields that a request for a task gives, and the closed set of its answers: null after the last
 * one. They live as long as the task is served. */
PLC_API const char* plc_task_field(const plc_engine* engine, const char* task, size_t place);
PLC_API const char* plc_task_choice(const plc_engine* engine, const char* task, size_t place);

/* Compares logits with those that the export noted: PLC_ERROR_ANSWER where they differ by more than
 * they may. A bundle without such notes for the task passes, and `*rows` is 0. */
PLC_API plc_status plc_self_test(plc_engine* engine, const char* task, size_t* rows);

/* ---- Requests ------------------------------------------------------------------------------------ */

/* A value of a field. */
typedef struct plc_field {
  const char* name;
  const char* text; /* may be null where its length is 0 */
  size_t length;    /* of the text in bytes, or PLC_LENGTH_OF_TEXT */
} plc_field;

typedef enum plc_kind {
  PLC_ANSWER = 0,     /* text */
  PLC_BEST_LABEL = 1, /* the likeliest choice of a task, with its probability */
  PLC_ALL_LABELS = 2  /* every choice with its probability */
} plc_kind;

typedef struct plc_bias {
  const char* token; /* the text of a token of the task's choices */
  float number;      /* -100 to 100 */
} plc_bias;

/* Begin with PLC_REQUEST_INIT, which has the defaults. Ranges are those of docs/serving.md. */
typedef struct plc_request {
  size_t struct_size; /* sizeof(plc_request) */
  const char* task;
  const plc_field* fields;
  size_t field_count;
  plc_kind kind;
  int32_t max_tokens;
  int32_t min_tokens;
  double temperature; /* 0: the likeliest token */
  int32_t top_k;      /* 0: all */
  double top_p;
  double min_p;
  double repetition_penalty;
  int32_t no_repeat_ngram; /* 0: off */
  uint64_t seed;
  const char* const* stop; /* texts that end the answer */
  size_t stop_count;
  const char* const* bad_words; /* texts that are never in the answer */
  size_t bad_word_count;
  const plc_bias* bias;
  size_t bias_count;
  int32_t free_answer;    /* not 0: an answer outside of the task's choices, or not copied, is allowed */
  int32_t without_prompt; /* not 0: the base's own answer, without virtual tokens */
  int32_t priority;       /* larger ones are admitted first */
  int32_t log_probs;      /* likeliest tokens noted at each token, up to 20; -1: nothing is noted */
  double timeout;         /* seconds, waiting included; 0: no limit */
} plc_request;
#define PLC_REQUEST_INIT                                                                              \
  {sizeof(plc_request), NULL, NULL, 0, PLC_ANSWER, 64, 0, 0.0, 0, 1.0, 0.0, 1.0, 0, 0, NULL, 0, NULL, 0, \
   NULL, 0, 0, 0, 0, -1, 0.0}

/* ---- One call ------------------------------------------------------------------------------------ */

/* Is given each piece of an answer as it is written. Another value than 0 ends the request: then
 * nothing more is given, and `plc_generate` returns PLC_CANCELLED. The event lives until the callback
 * returns. */
typedef int (*plc_callback)(void* user, const plc_event* event);

/* Answers a request: runs steps, together with the requests of other threads, until it is finished.
 * `callback` may not be null; it is called in this thread, and no lock is held meanwhile. The last
 * event that it is given has the result, or says why there is none, which is returned too. A request
 * that is refused has no event. */
PLC_API plc_status plc_generate(plc_engine* engine, const plc_request* request, plc_callback callback,
                                void* user);

/* ---- Many requests ------------------------------------------------------------------------------- */

/* Puts a request into the queue. Its number is above 0, and no other of this engine has it. */
PLC_API plc_status plc_submit(plc_engine* engine, const plc_request* request, uint64_t* number);

/* Runs one step of all requests under way, submitted or not. `*more` (`more` may be null) is 0 once
 * none is left and no event waits. Where the step fails it is written as well; each request under way
 * has ended with an event that says why. */
PLC_API plc_status plc_step(plc_engine* engine, int* more);

/* The next event of a submitted request; `*event` is null where none waits. It lives until it is
 * freed, longer than the engine if need be. */
PLC_API plc_status plc_poll(plc_engine* engine, plc_event** event);

/* Null is allowed. An event that a callback was given is left alone. */
PLC_API void plc_event_free(plc_event* event);

/* Ends a request, from any thread and from callbacks. Its last event says PLC_CANCELLED. A request
 * that is finished, or was never there, is not an error. */
PLC_API plc_status plc_cancel(plc_engine* engine, uint64_t number);

/* ---- Events -------------------------------------------------------------------------------------- */

/* Texts and whatever else is pointed to live as long as the event. Of a null event there is nothing: 0,
 * null, an empty text, PLC_ERROR_ARGUMENT. */

/* The number of its request. */
PLC_API uint64_t plc_event_number(const plc_event* event);

/* The text that became certain with this event: whole characters, perhaps none. A 0 byte ends it; there
 * may be others in it, so `length` counts. It may be null. */
PLC_API const char* plc_event_text(const plc_event* event, size_t* length);

/* Whether this is the request's last event. Only then the functions below say something. */
PLC_API int plc_event_is_last(const plc_event* event);

/* PLC_OK, or why there is no answer; and the sentence of it, else an empty text. */
PLC_API plc_status plc_event_status(const plc_event* event);
PLC_API const char* plc_event_error(const plc_event* event);

typedef enum plc_finish_reason { PLC_STOP = 0, PLC_LENGTH = 1, PLC_TIMEOUT = 2 } plc_finish_reason;

typedef struct plc_result {
  const char* text; /* the whole answer, without blanks at its ends */
  size_t text_length;
  const int32_t* token_ids; /* the end token included */
  size_t token_count;
  plc_finish_reason finish_reason;
  size_t prompt_tokens; /* virtual ones included */
  size_t cut_tokens;    /* cut from the task's truncate field */
  size_t prefix_tokens; /* of the prompt: held by the task's prefix */
  size_t shared_tokens; /* of the prompt: computed for earlier requests */
} plc_result;

/* The answer of a request of kind PLC_ANSWER; null where there is none. */
PLC_API const plc_result* plc_event_result(const plc_event* event);

typedef struct plc_label {
  const char* text;
  size_t text_length;
  double probability;     /* among all labels; of PLC_BEST_LABEL NaN: the others were not all looked at */
  double log_probability; /* natural logarithm of how likely the base writes just this */
} plc_label;

/* The labels of a request of the other kinds; null after the last one. */
PLC_API const plc_label* plc_event_label(const plc_event* event, size_t place);

typedef struct plc_log_prob {
  int32_t token_id;
  double log_prob;
} plc_log_prob;

/* With `log_probs`: of a token of the answer the likeliest tokens, the likeliest first, and before
 * them (`place` 0) the token itself; null where there is none. */
PLC_API const plc_log_prob* plc_event_log_prob(const plc_event* event, size_t token, size_t place);

/* ---- Tokens -------------------------------------------------------------------------------------- */

/* The ids of a text as data: special tokens in it are characters. Writes at most `room` ids, and how
 * many there are to `*count`; PLC_ERROR_ROOM where that is more. `ids` may be null where `room` is 0,
 * and `text` where `length` is 0. */
PLC_API plc_status plc_encode(const plc_engine* engine, const char* text, size_t length, int32_t* ids,
                              size_t room, size_t* count);

/* The text of ids, likewise; without a 0 byte at its end. `ids` may be null where `id_count` is 0. */
PLC_API plc_status plc_decode(const plc_engine* engine, const int32_t* ids, size_t id_count, char* text,
                              size_t room, size_t* count);

#ifdef __cplusplus
}
#endif

#endif /* PLC_RUNTIME_H */
