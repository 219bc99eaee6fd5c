/* What ONNX Runtime's CUDA provider needs of CUDA's libraries, without a GPU: memory is the host's, copies copy, and
 * kernels do nothing. So the provider itself can say where it places the nodes of a graph, which kernels a step
 * launches, and whether it captures. What it computes is worthless. dummy_cuda.py compiles this file.
 *
 * All functions that are not here return 0. Device 0 is the only one; it has DUMMY_CUDA_MEMORY bytes (80 GB by default).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, CAPTURE_UNSUPPORTED = 900 };
typedef struct { unsigned x, y, z; } dim3;
typedef void *handle;

static int make(handle *made) { *made = calloc(1, 1024); return SUCCESS; }

/* -- the log: one line for each launch, copy, allocation and synchronisation ----------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *events;
static int capturing;

void dummy_cuda_log(const char *path) {
    if (events) fclose(events);
    events = path ? fopen(path, "w") : NULL;
}

static void note(const char *event, const char *what, size_t size) {
    if (!events) return;
    pthread_mutex_lock(&lock);
    fprintf(events, "%s%s %zu %s\n", capturing ? "captured-" : "", event, size, what);
    fflush(events);
    pthread_mutex_unlock(&lock);
}

/* -- kernels --------------------------------------------------------------------------------------------------------- */

enum { MOST = 1 << 18 };
static struct { const void *function; const char *name; } kernels[MOST];
static int kernel_count;

static void register_kernel(const void *function, const char *name) {
    if (kernel_count == MOST) return;
    kernels[kernel_count].function = function;
    kernels[kernel_count++].name = name;
}

int dummy_cuda_launch(const char *name) {
    note("launch", name, 1);
    return SUCCESS;
}

static int launch(const void *function) {
    const char *name = "?";
    for (int i = 0; i < kernel_count; i++)
        if (kernels[i].function == function) name = kernels[i].name;
    return dummy_cuda_launch(name);
}

handle *__cudaRegisterFatBinary(void *code) { return calloc(1, 64); }
void __cudaRegisterFunction(handle *code, const char *function, char *device_function, const char *name, int threads,
                            void *tid, void *bid, void *block, void *grid, int *warp) {
    register_kernel(function, name);
}
int __cudaGetKernel(handle *kernel, const void *function) { *kernel = (handle)function; return SUCCESS; }
int cudaLibraryLoadData(handle *library) { return make(library); }
int cudaLibraryGetKernel(handle *kernel, handle library, const char *name) {
    make(kernel);
    register_kernel(*kernel, strdup(name));
    return SUCCESS;
}
int __cudaLaunchKernel(handle kernel) { return launch(kernel); }
int cudaLaunchKernel(const void *function) { return launch(function); }
int cudaLaunchCooperativeKernel(const void *function) { return launch(function); }
int cudaLaunchKernelExC(const void *config, const void *function) { return launch(function); }

static __thread struct { dim3 grid, block; size_t shared; handle stream; } calls[64];
static __thread int depth;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, handle stream) {
    calls[depth].grid = grid;
    calls[depth].block = block;
    calls[depth].shared = shared;
    calls[depth++].stream = stream;
    return SUCCESS;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, handle *stream) {
    depth--;
    *grid = calls[depth].grid;
    *block = calls[depth].block;
    *shared = calls[depth].shared;
    *stream = calls[depth].stream;
    return SUCCESS;
}
int cudaFuncGetAttributes(char *attributes, const void *function) {
    memset(attributes, 0, 64);
    ((int *)attributes)[6] = 1024; /* threads of a block */
    ((int *)attributes)[7] = 32;   /* registers */
    ((int *)attributes)[9] = 90;   /* binary version */
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count) { *count = 2; return SUCCESS; }
int cudaLaunchHostFunc(handle stream, void (*function)(void *), void *data) { function(data); return SUCCESS; }

/* -- the device: what an H100 says of itself, at the offsets of CUDA 13's cudaDeviceProp ------------------------------ */

static size_t memory(void) {
    const char *said = getenv("DUMMY_CUDA_MEMORY");
    return said ? strtoull(said, NULL, 10) : (size_t)80 << 30;
}

int cudaGetDeviceCount(int *count) { *count = 1; return SUCCESS; }
int cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
int cudaSetDevice(int device) { return device ? INVALID_DEVICE : SUCCESS; }
int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    static const int known[][2] = {{1, 1024}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {10, 32}, {12, 65536},
                                   {16, 132}, {38, 52428800}, {39, 2048}, {75, 9}, {76, 0}, {81, 233472}, {82, 65536},
                                   {95, 1}, {97, 232448}, {106, 32}, {115, 1}};
    *value = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) *value = known[i][1];
    return SUCCESS;
}

int cudaGetDeviceProperties(char *properties, int device) {
    static const int numbers[][2] = {{304, 65536}, {308, 32}, {320, 1024}, {324, 1024}, {328, 1024}, {332, 64},
                                     {336, 2147483647}, {340, 65535}, {344, 65535}, {360, 9}, {364, 0}, {384, 132},
                                     {560, 1}, {588, 1}, {596, 52428800}, {604, 2048}, {632, 65536}, {668, 1},
                                     {688, 32}, {720, 1}};
    const size_t sizes[][2] = {{288, memory()}, {296, 49152}, {312, 2147483647}, {352, 65536}, {624, 233472},
                               {672, 232448}};
    if (device) return INVALID_DEVICE;
    memset(properties, 0, 1008);
    strcpy(properties, "dummy");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        memcpy(properties + numbers[i][0], &numbers[i][1], sizeof(int));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        memcpy(properties + sizes[i][0], &sizes[i][1], sizeof(size_t));
    return SUCCESS;
}

/* -- memory ---------------------------------------------------------------------------------------------------------- */

static struct { char *start; size_t size; } blocks[MOST];
static int block_count;
static size_t in_use;

size_t dummy_cuda_bytes_in_use(void) { return in_use; }

static int take(void **address, size_t size) {
    *address = NULL;
    if (!size) return SUCCESS;
    if (in_use + size > memory()) return OUT_OF_MEMORY;
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED || block_count == MOST) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    blocks[block_count].start = found;
    blocks[block_count++].size = size;
    in_use += size;
    pthread_mutex_unlock(&lock);
    *address = found;
    note("allocation", "", size);
    return SUCCESS;
}

static int give_back(void *address) {
    pthread_mutex_lock(&lock);
    for (int i = 0; address && i < block_count; i++)
        if (blocks[i].start == address) {
            munmap(address, blocks[i].size);
            in_use -= blocks[i].size;
            blocks[i] = blocks[--block_count];
            break;
        }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cudaMemGetInfo(size_t *free, size_t *total) {
    *total = memory();
    *free = *total - in_use;
    return SUCCESS;
}
int cudaMalloc(void **address, size_t size) { return take(address, size); }
int cudaMallocFromPoolAsync(void **address, size_t size) { return take(address, size); }
int cudaFree(void *address) { return give_back(address); }
int cudaFreeAsync(void *address) { return give_back(address); }
int cudaMallocHost(void **address, size_t size) { *address = calloc(1, size + 1); return SUCCESS; }
int cudaHostAlloc(void **address, size_t size) { *address = calloc(1, size + 1); return SUCCESS; }
int cudaFreeHost(void *address) { free(address); return SUCCESS; }
int cudaMemPoolCreate(handle *pool) { return make(pool); }
int cudaMemPoolGetAttribute(handle pool, int attribute, uint64_t *value) { *value = 0; return SUCCESS; }

static int copy(void *target, const void *source, size_t size, int direction) {
    static const char *const directions[] = {"host to host", "to the device", "to the host", "on the device", "by address"};
    note("copy", directions[direction], size);
    memcpy(target, source, size);
    return SUCCESS;
}
int cudaMemcpy(void *target, const void *source, size_t size, int direction) { return copy(target, source, size, direction); }
int cudaMemcpyAsync(void *target, const void *source, size_t size, int direction) { return copy(target, source, size, direction); }
int cudaMemcpy2DAsync(char *target, size_t target_pitch, const char *source, size_t source_pitch, size_t width,
                      size_t height, int direction, handle stream) {
    for (size_t row = 0; row < height; row++) memcpy(target + row * target_pitch, source + row * source_pitch, width);
    note("copy", "of rows", width * height);
    return SUCCESS;
}
int cudaMemcpyFromSymbol(void *target, const void *symbol, size_t size) { memset(target, 0, size); return SUCCESS; }
int cudaMemset(void *target, int value, size_t size) { memset(target, value, size); return SUCCESS; }
int cudaMemsetAsync(void *target, int value, size_t size) {
    note("memset", "", size);
    memset(target, value, size);
    return SUCCESS;
}
int cudaPointerGetAttributes(char *attributes, const char *address) {
    memset(attributes, 0, 32);
    for (int i = 0; i < block_count; i++)
        if (address >= blocks[i].start && address < blocks[i].start + blocks[i].size) {
            const int of_the_device = 2;
            memcpy(attributes, &of_the_device, sizeof of_the_device);
            memcpy(attributes + 8, &address, sizeof address);
        }
    return SUCCESS;
}

/* -- streams, events and graphs -------------------------------------------------------------------------------------- */

int cudaStreamCreate(handle *stream) { return make(stream); }
int cudaStreamCreateWithFlags(handle *stream) { return make(stream); }
int cudaStreamSynchronize(handle stream) {
    note("synchronisation", "", 1);
    return capturing ? CAPTURE_UNSUPPORTED : SUCCESS;
}
int cudaEventCreate(handle *event) { return make(event); }
int cudaEventCreateWithFlags(handle *event) { return make(event); }
int cudaEventElapsedTime(float *milliseconds) { *milliseconds = 1; return SUCCESS; }
int cudaStreamBeginCapture(handle stream) { capturing = 1; return SUCCESS; }
int cudaStreamEndCapture(handle stream, handle *graph) { capturing = 0; return make(graph); }
int cudaStreamIsCapturing(handle stream, int *status) { *status = capturing; return SUCCESS; }
int cudaGraphInstantiate(handle *executable) { return make(executable); }
int cudaGraphLaunch(handle executable) { note("replay", "", 1); return SUCCESS; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *status) {
    *function = NULL;
    if (status) *status = 1; /* not found */
    return SUCCESS;
}
const char *cudaGetErrorName(int error) { return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheDummy"; }
const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : "an error of the dummy"; }

/* -- cuBLAS: libraries of their own, whose launches are noted in the runtime's log, which is loaded first ------------- */

static int product(const char *name) {
    int (*launched)(const char *) = dlsym(RTLD_DEFAULT, "dummy_cuda_launch");
    return launched(name);
}

int cublasCreate_v2(handle *made) { return make(made); }
int cublasGetMathMode(handle cublas, int *mode) { *mode = 0; return SUCCESS; }
const char *cublasGetStatusName(int status) { return "status"; }
const char *cublasGetStatusString(int status) { return "status"; }
int cublasGemmEx(void) { return product("cublasGemmEx"); }
int cublasSgemm_v2(void) { return product("cublasSgemm_v2"); }
int cublasGemmStridedBatchedEx(void) { return product("cublasGemmStridedBatchedEx"); }
int cublasSgemmStridedBatched(void) { return product("cublasSgemmStridedBatched"); }
int cublasLtMatmul(void) { return product("cublasLtMatmul"); }
int cublasLtCreate(handle *made) { return make(made); }
int cublasLtMatmulDescCreate(handle *made) { return make(made); }
int cublasLtMatmulPreferenceCreate(handle *made) { return make(made); }
int cublasLtMatrixLayoutCreate(handle *made) { return make(made); }
int cublasLtMatrixTransformDescCreate(handle *made) { return make(made); }
int cublasLtMatmulAlgoGetHeuristic(handle cublas, handle operation, handle a, handle b, handle c, handle d,
                                   handle preference, int wanted, char *algorithms, int *found) {
    memset(algorithms, 0, 96);
    *found = 1;
    return SUCCESS;
}
