// A CUDA driver without a GPU: memory is the host's, copies copy, kernels are loaded and never run. A program that uses it computes
// nothing true, but compiles every kernel with the real NVRTC and launches what it would launch. Each event is a line in the file
// that FAKE_CUDA_LOG names: what happened, how large, which kernel.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void *Pointer;
typedef unsigned long long Address;

static FILE *events;

static void note(const char *what, size_t size, const char *name) {
  if (events) fprintf(events, "%s %zu %s\n", what, size, name);
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAKE_CUDA_LOG");
  if (path) events = fopen(path, "w");
}

__attribute__((destructor)) static void end(void) {
  if (events) fclose(events);
}

#define NOTHING(name, ...) Result name(__VA_ARGS__) { return 0; }

NOTHING(cuInit, unsigned flags)
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGetCount(int *count) { *count = 1; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Result cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "no GPU"); return 0; }
Result cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 1, 16); return 0; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80ull << 30; return 0; }
Result cuMemGetInfo_v2(size_t *unused, size_t *total) { *unused = *total = 80ull << 30; return 0; }

// Those of an H100, as far as they are asked for (CUDA driver API, CUdevice_attribute).
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;  // threads of a block, and along x and y
    case 4: *value = 64; break;                    // along z
    case 5: *value = 2147483647; break;            // blocks along x
    case 6: case 7: *value = 65535; break;         // along y and z
    case 8: *value = 49152; break;                 // shared memory of a block
    case 10: *value = 32; break;                   // threads of a warp
    case 16: *value = 132; break;                  // multiprocessors
    case 75: *value = 9; break;                    // compute capability 9.0
    case 76: *value = 0; break;
    case 81: *value = 233472; break;               // shared memory of a multiprocessor
    case 97: *value = 232448; break;               // of a block that asks for it
    default: *value = 1;
  }
  return 0;
}

static Pointer context = &context;
Result cuDevicePrimaryCtxRetain(Pointer *out, int device) { *out = context; return 0; }
NOTHING(cuDevicePrimaryCtxRelease_v2, int device)
NOTHING(cuCtxSetCurrent, Pointer given)
Result cuCtxGetCurrent(Pointer *out) { *out = context; return 0; }
NOTHING(cuCtxPushCurrent_v2, Pointer given)
Result cuCtxPopCurrent_v2(Pointer *out) { *out = context; return 0; }
Result cuCtxGetDevice(int *device) { *device = 0; return 0; }
Result cuCtxSynchronize(void) { note("wait", 0, "context"); return 0; }
Result cuDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return 0; }

static Result allocate(Address *out, size_t size) {
  void *memory = calloc(size ? size : 1, 1);
  if (!memory) return 2;
  *out = (Address)memory;
  return 0;
}
Result cuMemAlloc_v2(Address *out, size_t size) { note("allocate", size, ""); return allocate(out, size); }
Result cuMemAllocAsync(Address *out, size_t size, Pointer stream) { return cuMemAlloc_v2(out, size); }
Result cuMemFree_v2(Address memory) { free((void *)memory); return 0; }
Result cuMemFreeAsync(Address memory, Pointer stream) { return cuMemFree_v2(memory); }
Result cuMemAllocHost_v2(Pointer *out, size_t size) { return allocate((Address *)out, size); }
Result cuMemHostAlloc(Pointer *out, size_t size, unsigned flags) { return allocate((Address *)out, size); }
Result cuMemFreeHost(Pointer memory) { free(memory); return 0; }

Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, Pointer stream) {
  memcpy((void *)to, from, size); note("upload", size, ""); return 0;
}
Result cuMemcpyDtoHAsync_v2(Pointer to, Address from, size_t size, Pointer stream) {
  memcpy(to, (void *)from, size); note("read", size, ""); return 0;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, Pointer stream) {
  memmove((void *)to, (void *)from, size); note("copy", size, ""); return 0;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t count, Pointer stream) {
  memset((void *)to, value, count); return 0;
}
struct side { size_t x, y; int type; Pointer host; Address device; Pointer array; size_t pitch; };
struct plane { struct side from, to; size_t width, height; };
Result cuMemcpy2DAsync_v2(const struct plane *plane, Pointer stream) {
  const char *from = plane->from.type == 1 ? plane->from.host : (Pointer)plane->from.device;
  char *to = plane->to.type == 1 ? plane->to.host : (Pointer)plane->to.device;
  for (size_t row = 0; row < plane->height; row++)
    memcpy(to + (plane->to.y + row) * plane->to.pitch + plane->to.x,
           from + (plane->from.y + row) * plane->from.pitch + plane->from.x, plane->width);
  note(plane->to.type == 1 ? "read" : "upload", plane->width * plane->height, "");
  return 0;
}

static Result handle(Pointer *out) { *out = malloc(1); return 0; }
Result cuEventCreate(Pointer *out, unsigned flags) { return handle(out); }
NOTHING(cuEventRecord, Pointer event, Pointer stream)
Result cuEventSynchronize(Pointer event) { note("wait", 0, "event"); return 0; }
NOTHING(cuEventQuery, Pointer event)
Result cuEventElapsedTime(float *time, Pointer one, Pointer other) { *time = 0; return 0; }
Result cuEventElapsedTime_v2(float *time, Pointer one, Pointer other) { *time = 0; return 0; }
Result cuEventDestroy_v2(Pointer event) { free(event); return 0; }
Result cuStreamCreate(Pointer *out, unsigned flags) { return handle(out); }
Result cuStreamCreateWithPriority(Pointer *out, unsigned flags, int priority) { return handle(out); }
NOTHING(cuStreamWaitEvent, Pointer stream, Pointer event, unsigned flags)
Result cuStreamSynchronize(Pointer stream) { note("wait", 0, "stream"); return 0; }
Result cuStreamDestroy_v2(Pointer stream) { free(stream); return 0; }

Result cuModuleLoadData(Pointer *out, const void *image) { note("module", strlen(image), ""); return handle(out); }
NOTHING(cuModuleUnload, Pointer module)
Result cuModuleGetFunction(Pointer *out, Pointer module, const char *name) { *out = strdup(name); return 0; }
Result cuFuncSetAttribute(Pointer function, int attribute, int value) { return value > 232448; }
Result cuFuncGetAttribute(int *value, int attribute, Pointer function) { *value = 0; return 0; }
Result cuLaunchKernel(Pointer function, unsigned x, unsigned y, unsigned z, unsigned columns, unsigned rows, unsigned layers,
                      unsigned shared, Pointer stream, Pointer *arguments, Pointer *extra) {
  unsigned long long threads = (unsigned long long)columns * rows * layers;
  if (!x || !y || !z || y > 65535 || z > 65535 || !threads || threads > 1024 || shared > 232448) {
    fprintf(stderr, "no GPU takes %s in %u x %u x %u blocks of %llu threads\n", (char *)function, x, y, z, threads);
    return 1;
  }
  note("launch", (size_t)x * y * z, function);
  return 0;
}
Result cuLaunchKernelEx(Pointer configuration, Pointer function, Pointer *arguments, Pointer *extra) {
  note("launch", 0, function); return 0;
}
Result cuTensorMapEncodeTiled(Pointer map, ...) { memset(map, 0, 128); return 0; }
Result cuTensorMapEncodeIm2col(Pointer map, ...) { memset(map, 0, 128); return 0; }
Result cuTensorMapEncodeIm2colWide(Pointer map, ...) { memset(map, 0, 128); return 0; }

Result cuGetErrorName(Result error, const char **name) { *name = "refused"; return 0; }
Result cuGetErrorString(Result error, const char **text) { *text = "a driver without a GPU refused it"; return 0; }
