// A libcuda.so that runs kernels through cuemu, so the real host code (cudarc,
// streams, events, pinned copies, graphs) is tested with neither GPU nor CUDA.
// Streams are LAZY: an operation runs only when something waits for it, so a
// missing synchronisation shows as stale data on every run.
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>
extern "C" {
int cuemu_launch(const char*, const unsigned*, const unsigned*, size_t, void**, char*, size_t);
int cuemu_kernel_params(const char*, const uint32_t**);
}
#define API extern "C" __attribute__((visibility("default"))) int
namespace {
enum { OK = 0, INVALID = 1, OOM = 2, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL = 700, NO_DEVICE = 100, LAUNCH_FAILED = 719, BAD_IMAGE = 200 };
using u64 = unsigned long long;
std::recursive_mutex g_mu;
struct Lock { std::lock_guard<std::recursive_mutex> g{g_mu}; };
int g_sticky = 0;
std::string g_msg;
size_t g_total = (size_t)4 << 30, g_used = 0;
// A process that is started with this library as its driver sets the devices from outside.
int first_devices() { const char* set = getenv("CUEMU_DEVICES"); return set ? atoi(set) : 1; }
int g_devices = first_devices(), g_version = 12080;
int g_fail_launch = 0, g_fail_alloc = 0;  // fail the n-th from now on; 0: none
u64 g_launches = 0, g_copied = 0;         // kernels launched; bytes copied from host to device
bool strike(int& countdown) { return countdown > 0 && --countdown == 0; }
struct Alloc { size_t bytes, map; char* base; };
std::map<uintptr_t, Alloc> g_dev;                      // device + managed
std::map<uintptr_t, size_t> g_pinned;
struct Op { std::function<void()> run; };
struct Stream { std::deque<Op> q; u64 pushed = 0, done = 0; std::vector<Op>* capture = nullptr; };
struct Event { Stream* s = nullptr; u64 at = 0; std::shared_ptr<double> ms = std::make_shared<double>(0.0); };
struct Func { std::string name; const uint32_t* sizes; int n; int max_dyn = 48 << 10; };
struct Module { std::string image; std::map<std::string, std::unique_ptr<Func>> f; };
struct Graph { std::vector<Op> ops; };
Stream g_null;
std::vector<Stream*> g_streams{&g_null};
Stream* S(void* s) { return s == nullptr || s == (void*)1 || s == (void*)2 ? &g_null : (Stream*)s; }
double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
void push(void* st, std::function<void()> f) {
  Stream* s = S(st);
  if (s->capture) { s->capture->push_back({std::move(f)}); return; }
  s->q.push_back({std::move(f)});
  s->pushed++;
}
void drive(Stream* s, u64 upto) {
  while (s->done < upto && !s->q.empty()) {
    Op o = std::move(s->q.front());
    s->q.pop_front();
    s->done++;
    if (!g_sticky) o.run();
  }
}
void drain(Stream* s) { drive(s, s->pushed); }
void drain_all() { for (size_t i = 0; i < g_streams.size(); ++i) drain(g_streams[i]); }
bool pinned(const void* p) {
  auto it = g_pinned.upper_bound((uintptr_t)p);
  if (it != g_pinned.begin() && (--it, (uintptr_t)p < it->first + it->second)) return true;
  auto d = g_dev.upper_bound((uintptr_t)p);
  return d != g_dev.begin() && (--d, (uintptr_t)p < d->first + d->second.bytes);
}
bool in_dev(u64 p, size_t n) {
  auto it = g_dev.upper_bound((uintptr_t)p);
  return n == 0 || (it != g_dev.begin() && (--it, p + n <= it->first + it->second.bytes));
}
// allocation ends (up to 16-byte rounding) at an unmapped page: overruns fault
int dev_alloc(u64* out, size_t n) {
  if (strike(g_fail_alloc) || g_used + n > g_total) return OOM;
  size_t body = (n + 15) / 16 * 16, pages = (body + 4095) / 4096 * 4096, map = pages + 8192;
  char* b = (char*)mmap(nullptr, map, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (b == MAP_FAILED) return OOM;
  mprotect(b, 4096, PROT_NONE);
  mprotect(b + map - 4096, 4096, PROT_NONE);
  char* p = b + 4096 + (pages - body);
  memset(p, 0xff, body);
  g_dev[(uintptr_t)p] = {n, map, b};
  g_used += n;
  *out = (u64)(uintptr_t)p;
  return OK;
}
int dev_free(u64 p) {
  auto it = g_dev.find((uintptr_t)p);
  if (it == g_dev.end()) return p ? INVALID : OK;
  munmap(it->second.base, it->second.map);
  g_used -= it->second.bytes;
  g_dev.erase(it);
  return OK;
}
void launch_now(Func* f, const unsigned* g, const unsigned* b, unsigned smem, std::vector<std::vector<char>> args) {
  std::vector<void*> p;
  for (auto& a : args) p.push_back(a.data());
  char err[600] = "";
  if (cuemu_launch(f->name.c_str(), g, b, smem, p.data(), err, sizeof err)) {
    g_msg = err;
    g_sticky = strstr(err, "illegal address") ? ILLEGAL : LAUNCH_FAILED;
    fprintf(stderr, "[emulated device] %s\n", err);
  }
}
int sync_result() { return g_sticky; }
const char* name_of(int e) {
  switch (e) {
    case OK: return "CUDA_SUCCESS"; case INVALID: return "CUDA_ERROR_INVALID_VALUE"; case OOM: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE"; case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND"; case NOT_READY: return "CUDA_ERROR_NOT_READY";
    case ILLEGAL: return "CUDA_ERROR_ILLEGAL_ADDRESS"; case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED"; case 701: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; case BAD_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
  }
  return "CUDA_ERROR_UNKNOWN";
}
int g_ctx_obj;
thread_local void* t_ctx = nullptr;
int ndev() { return g_devices; }
}  // namespace
// test controls
API mockcuda_reset_error() { Lock l; int e = g_sticky; g_sticky = 0; return e; }
API mockcuda_set_memory(size_t n) { Lock l; g_total = n; return OK; }
API mockcuda_leaks() { Lock l; return (int)(g_dev.size() + g_pinned.size()); }
API mockcuda_set_devices(int n) { Lock l; g_devices = n; return OK; }
API mockcuda_set_version(int v) { Lock l; g_version = v; return OK; }
API mockcuda_fail_launch(int n) { Lock l; g_fail_launch = n; return OK; }
API mockcuda_fail_alloc(int n) { Lock l; g_fail_alloc = n; return OK; }
extern "C" __attribute__((visibility("default"))) u64 mockcuda_copied() { Lock l; return g_copied; }
extern "C" __attribute__((visibility("default"))) u64 mockcuda_launches() { Lock l; return g_launches; }

API cuInit(unsigned) { return ndev() ? OK : NO_DEVICE; }
API cuDriverGetVersion(int* v) { *v = g_version; return OK; }
API cuDeviceGetCount(int* n) { *n = ndev(); return OK; }
API cuDeviceGet(int* d, int i) { if (i < 0 || i >= ndev()) return 101; *d = i; return OK; }
API cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "cuemu host emulation"); return OK; }
API cuDeviceTotalMem_v2(size_t* b, int) { *b = g_total; return OK; }
API cuDeviceGetAttribute(int* v, int a, int) {
  switch (a) {
    case 1: *v = 1024; break;            // MAX_THREADS_PER_BLOCK
    case 8: *v = 48 << 10; break;        // MAX_SHARED_MEMORY_PER_BLOCK
    case 10: *v = 32; break;             // WARP_SIZE
    case 16: *v = 4; break;              // MULTIPROCESSOR_COUNT
    case 38: *v = 1 << 20; break;        // L2_CACHE_SIZE
    case 75: *v = 9; break;              // COMPUTE_CAPABILITY_MAJOR
    case 76: *v = 0; break;
    case 83: *v = 1; break;              // MANAGED_MEMORY
    case 89: *v = 1; break;              // CONCURRENT_MANAGED_ACCESS
    case 97: *v = 227 << 10; break;      // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 115: *v = 1; break;             // MEMORY_POOLS_SUPPORTED
    default: *v = 0;
  }
  return OK;
}
API cuDevicePrimaryCtxRetain(void** c, int) { *c = &g_ctx_obj; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxSetCurrent(void* c) { t_ctx = c; return OK; }
API cuCtxGetCurrent(void** c) { *c = t_ctx; return OK; }
API cuCtxSynchronize() { Lock l; drain_all(); return sync_result(); }
API cuMemGetInfo_v2(size_t* f, size_t* t) { Lock l; *t = g_total; *f = g_total - g_used; return OK; }
API cuGetErrorName(int e, const char** s) { *s = name_of(e); return OK; }
API cuGetErrorString(int e, const char** s) { *s = e >= ILLEGAL && !g_msg.empty() ? g_msg.c_str() : name_of(e); return OK; }

API cuStreamCreate(void** s, unsigned) { Lock l; auto* p = new Stream; g_streams.push_back(p); *s = p; return OK; }
API cuStreamCreateWithPriority(void** s, unsigned f, int) { return cuStreamCreate(s, f); }
API cuStreamDestroy_v2(void* s) {
  Lock l;
  drain(S(s));
  for (auto& x : g_streams) if (x == s) { x = g_streams.back(); g_streams.pop_back(); break; }
  return OK;  // Stream object kept: events may still point at it
}
API cuStreamSynchronize(void* s) { Lock l; drain(S(s)); return sync_result(); }
API cuStreamQuery(void* s) { Lock l; if (S(s)->q.empty()) return OK; drive(S(s), S(s)->done + 1); return NOT_READY; }
API cuEventCreate(void** e, unsigned) { *e = new Event; return OK; }
API cuEventDestroy_v2(void* e) { Lock l; delete (Event*)e; return OK; }
API cuEventRecord(void* e, void* s) {
  Lock l;
  auto* ev = (Event*)e;
  ev->ms = std::make_shared<double>(0.0);
  auto t = ev->ms;
  push(s, [t] { *t = now(); });
  ev->s = S(s);
  ev->at = S(s)->pushed;
  return OK;
}
API cuStreamWaitEvent(void* s, void* e, unsigned) {
  Lock l;
  auto* ev = (Event*)e;
  if (!ev->s) return OK;
  Stream* src = ev->s;
  u64 at = ev->at;
  if (src != S(s) && !S(s)->capture) push(s, [src, at] { drive(src, at); });
  return OK;
}
API cuEventSynchronize(void* e) { Lock l; auto* ev = (Event*)e; if (ev->s) drive(ev->s, ev->at); return sync_result(); }
API cuEventQuery(void* e) {
  Lock l;
  auto* ev = (Event*)e;
  if (!ev->s || ev->s->done >= ev->at) return sync_result();
  drive(ev->s, ev->s->done + 1);  // polling makes progress
  return NOT_READY;
}
API cuEventElapsedTime(float* ms, void* a, void* b) { Lock l; *ms = (float)(*((Event*)b)->ms - *((Event*)a)->ms); return OK; }
API cuEventElapsedTime_v2(float* ms, void* a, void* b) { return cuEventElapsedTime(ms, a, b); }
API cuLaunchHostFunc(void* s, void (*fn)(void*), void* d) { Lock l; push(s, [=] { fn(d); }); return OK; }

API cuMemAlloc_v2(u64* p, size_t n) { Lock l; return dev_alloc(p, n); }
API cuMemAllocAsync(u64* p, size_t n, void*) { Lock l; return dev_alloc(p, n); }
API cuMemAllocManaged(u64* p, size_t n, unsigned) { Lock l; return dev_alloc(p, n); }
API cuMemFree_v2(u64 p) { Lock l; drain_all(); return dev_free(p); }
API cuMemFreeAsync(u64 p, void* s) { Lock l; push(s, [p] { dev_free(p); }); return OK; }
API cuMemHostAlloc(void** p, size_t n, unsigned) {
  Lock l;
  if (strike(g_fail_alloc)) return OOM;
  if (posix_memalign(p, 4096, n ? n : 1)) return OOM;
  memset(*p, 0xff, n);
  g_pinned[(uintptr_t)*p] = n;
  return OK;
}
API cuMemFreeHost(void* p) { Lock l; drain_all(); g_pinned.erase((uintptr_t)p); free(p); return OK; }
API cuMemcpyHtoDAsync_v2(u64 d, const void* h, size_t n, void* s) {
  Lock l;
  if (!in_dev(d, n)) return INVALID;
  g_copied += n;
  if (pinned(h)) { push(s, [=] { memcpy((void*)d, h, n); }); return OK; }
  auto buf = std::make_shared<std::vector<char>>((const char*)h, (const char*)h + n);  // pageable: staged
  push(s, [=] { memcpy((void*)d, buf->data(), n); });
  return OK;
}
API cuMemcpyDtoHAsync_v2(void* h, u64 d, size_t n, void* s) {
  Lock l;
  if (!in_dev(d, n)) return INVALID;
  push(s, [=] { memcpy(h, (void*)d, n); });
  if (!pinned(h) && !S(s)->capture) { drain(S(s)); return sync_result(); }  // pageable: synchronous
  return OK;
}
API cuMemcpyDtoDAsync_v2(u64 d, u64 a, size_t n, void* s) {
  Lock l;
  if (!in_dev(d, n) || !in_dev(a, n)) return INVALID;
  push(s, [=] { memmove((void*)d, (void*)a, n); });
  return OK;
}
API cuMemcpyHtoD_v2(u64 d, const void* h, size_t n) { Lock l; drain(&g_null); if (!in_dev(d, n)) return INVALID; memcpy((void*)d, h, n); return OK; }
API cuMemcpyDtoH_v2(void* h, u64 d, size_t n) { Lock l; drain(&g_null); if (!in_dev(d, n)) return INVALID; memcpy(h, (void*)d, n); return OK; }
API cuMemsetD8Async(u64 d, unsigned char v, size_t n, void* s) {
  Lock l;
  if (!in_dev(d, n)) return INVALID;
  push(s, [=] { memset((void*)d, v, n); });
  return OK;
}

API cuModuleLoadData(void** m, const void* image) {
  Lock l;
  if (memcmp(image, "\x7f" "ELF", 4) == 0) { *m = new Module{"", {}}; return OK; }  // cubin: names unchecked
  std::string s((const char*)image);
  if (s.find(".version") == std::string::npos) return BAD_IMAGE;
  *m = new Module{s, {}};
  return OK;
}
API cuModuleUnload(void*) { return OK; }
// the kernel must be in the PTX with as many parameters as the emulated one
API cuModuleGetFunction(void** f, void* mod, const char* name) {
  Lock l;
  auto* m = (Module*)mod;
  const uint32_t* sizes;
  int n = cuemu_kernel_params(name, &sizes);
  if (n < 0) return NOT_FOUND;
  if (!m->image.empty()) {
    size_t at = m->image.find(std::string(".entry ") + name + "(");
    if (at == std::string::npos) return NOT_FOUND;
    size_t end = m->image.find(')', at);
    int np = 0;
    for (size_t i = at; (i = m->image.find(".param ", i)) < end; ++i) ++np;
    if (np != n) { g_msg = std::string(name) + ": PTX and emulation disagree on the parameter count"; return BAD_IMAGE; }
  }
  auto& slot = m->f[name];
  if (!slot) slot.reset(new Func{name, sizes, n});
  *f = slot.get();
  return OK;
}
API cuFuncSetAttribute(void* f, int a, int v) { Lock l; if (a == 8) { if (v > 227 << 10) return INVALID; ((Func*)f)->max_dyn = v; } return OK; }
API cuFuncGetAttribute(int* v, int a, void* f) { Lock l; *v = a == 8 ? ((Func*)f)->max_dyn : a == 0 ? 1024 : 0; return OK; }
API cuLaunchKernel(void* fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem, void* s, void** params, void**) {
  Lock l;
  auto* f = (Func*)fn;
  if (g_sticky) return g_sticky;
  if (strike(g_fail_launch)) return 701;  // LAUNCH_OUT_OF_RESOURCES: refused, not sticky
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || !(bx * by * bz)) return INVALID;
  if ((int)smem > f->max_dyn) return INVALID;  // > 48 KiB needs cuFuncSetAttribute first, as on the device
  ++g_launches;
  std::vector<std::vector<char>> args;
  for (int i = 0; i < f->n; ++i) args.emplace_back((char*)params[i], (char*)params[i] + f->sizes[i]);
  push(s, [=] {
    unsigned g[3] = {gx, gy, gz}, b[3] = {bx, by, bz};
    launch_now(f, g, b, smem, args);
  });
  return OK;
}

API cuStreamBeginCapture_v2(void* s, int) { Lock l; S(s)->capture = new std::vector<Op>; return OK; }
API cuStreamIsCapturing(void* s, int* st) { Lock l; *st = S(s)->capture != nullptr; return OK; }
API cuStreamEndCapture(void* s, void** g) {
  Lock l;
  if (!S(s)->capture) return INVALID;
  *g = new Graph{std::move(*S(s)->capture)};
  delete S(s)->capture;
  S(s)->capture = nullptr;
  return OK;
}
API cuGraphInstantiateWithFlags(void** e, void* g, u64) { *e = new Graph(*(Graph*)g); return OK; }
API cuGraphUpload(void*, void*) { return OK; }
API cuGraphLaunch(void* e, void* s) { Lock l; for (auto& o : ((Graph*)e)->ops) push(s, o.run); return OK; }
API cuGraphExecDestroy(void*) { return OK; }
API cuGraphDestroy(void* g) { delete (Graph*)g; return OK; }
