/* One answer, written as it comes.
 *
 *     answer BUNDLE TASK FIELD=TEXT [FIELD=TEXT ...]
 */
#include <plc_runtime.h>
#include <stdio.h>
#include <string.h>

enum { MOST_FIELDS = 16 };

static int print(void* user, const plc_event* event) {
  size_t length;
  const char* text = plc_event_text(event, &length);
  fwrite(text, 1, length, (FILE*)user);
  fflush((FILE*)user);
  const plc_result* result = plc_event_result(event);
  if (result != NULL)
    fprintf(stderr, "\n%zu tokens of prompt, %zu of them in the task's prefix; %zu written\n",
            result->prompt_tokens, result->prefix_tokens, result->token_count);
  return 0;
}

static int failed(plc_engine* engine) {
  fprintf(stderr, "%s\n", plc_last_error());
  plc_engine_close(engine);
  return 1;
}

int main(int count, char** arguments) {
  if (count < 4 || count - 3 > MOST_FIELDS) {
    fprintf(stderr, "usage: %s BUNDLE TASK FIELD=TEXT [FIELD=TEXT ...]\n", arguments[0]);
    return 2;
  }
  plc_field fields[MOST_FIELDS];
  size_t field_count = 0;
  for (int i = 3; i < count; ++i) {
    char* text = strchr(arguments[i], '=');
    if (text == NULL) {
      fprintf(stderr, "%s: expected FIELD=TEXT\n", arguments[i]);
      return 2;
    }
    *text = 0; /* ends the name */
    fields[field_count].name = arguments[i];
    fields[field_count].text = text + 1;
    fields[field_count].length = PLC_LENGTH_OF_TEXT;
    ++field_count;
  }

  plc_engine* engine;
  if (plc_engine_open(arguments[1], NULL, &engine) != PLC_OK) return failed(engine);
  plc_request request = PLC_REQUEST_INIT;
  request.task = arguments[2];
  request.fields = fields;
  request.field_count = field_count;
  if (plc_generate(engine, &request, print, stdout) != PLC_OK) return failed(engine);
  plc_engine_close(engine);
  return 0;
}
