// The log, and the functions that the test's process calls to steer it.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "fake.h"

namespace fake {

std::recursive_mutex mutex;

namespace {

bool on = true;

FILE* file() {
  static FILE* opened = [] {
    const char* path = std::getenv("FAKE_CUDA_LOG");
    return path == nullptr ? stderr : std::fopen(path, "a");
  }();
  return opened;
}

void line(const char* format, va_list arguments) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  std::vfprintf(file(), format, arguments);
  std::fputc('\n', file());
}

}  // namespace

bool logging() { return on; }

void write(const char* format, ...) {
  if (!on) return;
  va_list arguments;
  va_start(arguments, format);
  line(format, arguments);
  va_end(arguments);
}

void violation(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::lock_guard<std::recursive_mutex> lock(mutex);
  std::fprintf(file(), "violation\t%s\n", text);
}

}  // namespace fake

// Off while host time is measured: launches are still checked and counted.
FAKE_API void fake_logging(int value) { fake::on = value != 0; }

FAKE_API void fake_flush() { std::fflush(fake::file()); }

FAKE_API void fake_mark(const char* text) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  std::fprintf(fake::file(), "mark\t%s\n", text);
}

// What has no implementation here: the generated stubs (build.py) call it.
FAKE_API int fake_missing(const char* call) {
  fake::violation("%s is not part of the fake device", call);
  return cudaErrorNotSupported;
}
