// The only file that knows Python: tensors in, addresses out, exceptions back.
//
// A tensor is read through the DLPack C exchange API that its type publishes: a table of function
// pointers that yields address, dtype, shape, strides, device and current stream without linking to
// libtorch, so one binary serves every torch version.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "dlpack.h"
#include "kernels.h"

namespace py = pybind11;
using namespace fastcka;

namespace {

const DLPackExchangeAPI* exchange_of(PyTypeObject* type, const char* name) {
  static PyTypeObject* last_type = nullptr;
  static const DLPackExchangeAPI* last_api = nullptr;
  if (type == last_type) return last_api;
  py::object owner = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
  if (!py::hasattr(owner, "__dlpack_c_exchange_api__"))
    throw py::type_error(std::string("`") + name + "` must be a torch.Tensor, but is a " +
                         type->tp_name);
  py::object capsule = owner.attr("__dlpack_c_exchange_api__");
  auto* header = static_cast<DLPackExchangeAPIHeader*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!header) throw py::error_already_set();
  while (header && header->version.major > DLPACK_MAJOR_VERSION) header = header->prev_api;
  auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (!api || api->header.version.major != DLPACK_MAJOR_VERSION ||
      !api->dltensor_from_py_object_no_sync)
    throw std::runtime_error("this torch publishes no DLPack exchange table of version 1");
  Py_INCREF(type);  // while it is cached no other type can take its address
  Py_XDECREF(last_type);
  last_type = type;
  return last_api = api;
}

// What a kernel needs to know of a tensor. Valid while the caller holds the tensor.
struct View {
  const char* name;
  char* data;
  DLDataType dtype;
  DLDevice device;
  int ndim;
  int64_t shape[2], stride[2];
  const DLPackExchangeAPI* api;

  View(py::handle tensor, const char* name_, int dims) : name(name_) {
    api = exchange_of(Py_TYPE(tensor.ptr()), name);
    DLTensor t;
    if (api->dltensor_from_py_object_no_sync(tensor.ptr(), &t) != 0) {
      PyErr_Clear();  // torch's own message is a page of C++ trace
      throw std::runtime_error(std::string("`") + name +
                               "` holds no plain memory (a meta, sparse or wrapped tensor?)");
    }
    if (t.ndim != dims)
      throw py::value_error(std::string("`") + name + "` must have " + std::to_string(dims) +
                            " dimensions, but has " + std::to_string(t.ndim));
    int64_t numel = 1;
    ndim = t.ndim;
    for (int d = 0; d < ndim; ++d) {
      shape[d] = t.shape[d];
      stride[d] = t.strides ? t.strides[d] : (d == ndim - 1 ? 1 : t.shape[ndim - 1]);
      numel *= shape[d];
    }
    if (!t.data && numel > 0)
      throw std::runtime_error(std::string("`") + name + "` has no data (a fake tensor?)");
    data = static_cast<char*>(t.data) + t.byte_offset;
    dtype = t.dtype;
    device = t.device;
    if (reinterpret_cast<uintptr_t>(data) % (dtype.bits / 8 ? dtype.bits / 8 : 1) != 0)
      throw py::value_error(std::string("`") + name + "` does not begin at a multiple of its item size");
    // What is computed along the last dimension is read and written without a stride.
    if (shape[ndim - 1] > 1 && stride[ndim - 1] != 1)
      throw py::value_error(std::string("`") + name + "` must be dense along its last dimension");
  }

  int64_t rows() const { return ndim == 2 ? shape[0] : 1; }
  int64_t columns() const { return shape[ndim - 1]; }
  int64_t row_stride() const { return ndim == 2 ? stride[0] : 0; }
  size_t item() const { return dtype.bits / 8; }

  void needs_shape(int64_t first, int64_t second = -1) const {
    if (shape[0] != first || (ndim == 2 && shape[1] != second))
      throw py::value_error(
          std::string("`") + name + "` must have shape [" + std::to_string(first) +
          (ndim == 2 ? ", " + std::to_string(second) : "") + "], but has [" +
          std::to_string(shape[0]) + (ndim == 2 ? ", " + std::to_string(shape[1]) : "") + "]");
  }
  void needs_float64() const {
    if (dtype.code != kDLFloat || dtype.bits != 64)
      throw py::type_error(std::string("`") + name + "` must be float64");
  }
  void needs_device_of(const View& other) const {
    if (device.device_type != other.device.device_type ||
        device.device_id != other.device.device_id)
      throw std::runtime_error(std::string("`") + name + "` and `" + other.name +
                               "` must be on one device");
  }
  const char* end() const {
    return rows() && columns()
               ? data + (size_t((rows() - 1) * row_stride()) + size_t(columns())) * item()
               : data;
  }
  // An output whose rows overlap, or that shares memory with another argument, would be overwritten
  // while it is read.
  void needs_own_memory(std::initializer_list<const View*> others) const {
    if (rows() > 1 && row_stride() < columns())
      throw py::value_error(std::string("`") + name + "` is written to, but its rows overlap");
    for (const View* other : others)
      if (data < other->end() && other->data < end())
        throw py::value_error(std::string("`") + name + "` is written to, but shares memory with `" +
                              other->name + "`");
  }
};

Dtype dtype_of(const View& x) {
  if (x.dtype.lanes == 1) {
    if (x.dtype.code == kDLBfloat && x.dtype.bits == 16) return Dtype::bf16;
    if (x.dtype.code == kDLFloat && x.dtype.bits == 16) return Dtype::f16;
    if (x.dtype.code == kDLFloat && x.dtype.bits == 32) return Dtype::f32;
    if (x.dtype.code == kDLFloat && x.dtype.bits == 64) return Dtype::f64;
  }
  throw py::type_error(std::string("`") + x.name +
                       "` must be float16, bfloat16, float32 or float64");
}

Operand operand_of(const std::string& name) {
  if (name == "float16") return Operand::f16;
  if (name == "bfloat16") return Operand::bf16;
  if (name == "float32") return Operand::as_accumulated;
  throw py::value_error("`operand` must be float16, bfloat16 or float32, but is " + name);
}

void needs_cpu(const View& view) {
  if (view.device.device_type != kDLCPU)
    throw std::runtime_error(std::string("`") + view.name + "` must be on the CPU");
}

void needs_threads(int threads) {
  if (threads < 1)
    throw py::value_error("`threads` must be at least 1, but is " + std::to_string(threads));
}

// All but workspace and threads.
GramInput input_of(const View& x, const std::string& operand) {
  if (x.rows() < 1 || x.columns() < 1)
    throw py::value_error(std::string("`") + x.name + "` has no rows or no features");
  needs_cpu(x);
  GramInput input{};
  input.x = x.data;
  input.n = x.rows();
  input.p = x.columns();
  input.row_stride = x.row_stride();
  input.dtype = dtype_of(x);
  input.operand = operand_of(operand);
  return input;
}

// The first address of the workspace that is a multiple of 64.
void* aligned_start(const View& workspace, size_t bytes) {
  needs_cpu(workspace);
  const size_t skipped = (64 - reinterpret_cast<uintptr_t>(workspace.data) % 64) % 64;
  if (size_t(workspace.columns()) * workspace.item() < bytes + skipped)
    throw py::value_error("`workspace` must hold " + std::to_string(bytes) +
                          " bytes from a 64-byte boundary on");
  return workspace.data + skipped;
}

size_t gram_workspace(py::handle x_, int threads) {
  const View x(x_, "x", 2);
  needs_threads(threads);
  return cpu_kernels().gram_workspace(x.rows(), x.columns(), dtype_of(x), threads);
}

void gram(py::handle x_, py::handle k_, py::handle stats_, py::handle workspace_,
          const std::string& operand, int threads) {
  const View x(x_, "x", 2), k(k_, "k", 2), stats(stats_, "stats", 1);
  const View workspace(workspace_, "workspace", 1);
  GramArgs args;
  static_cast<GramInput&>(args) = input_of(x, operand);
  needs_threads(threads);
  k.needs_shape(x.rows(), x.rows());
  stats.needs_shape(3);
  for (const View* view : {&k, &stats}) {
    view->needs_float64();
    needs_cpu(*view);
  }
  k.needs_own_memory({&x, &stats, &workspace});
  stats.needs_own_memory({&x, &workspace});
  workspace.needs_own_memory({&x});
  const CpuKernels& kernels = cpu_kernels();
  args.workspace =
      aligned_start(workspace, kernels.gram_workspace(args.n, args.p, args.dtype, threads));
  args.threads = threads;
  args.k = reinterpret_cast<double*>(k.data);
  args.k_stride = k.row_stride();
  args.stats = reinterpret_cast<double*>(stats.data);
  py::gil_scoped_release release;
  kernels.gram(args);
}

int64_t packed_length(int64_t n, bool biased) {
  const int64_t least = biased ? 2 : 4;
  if (n < least)
    throw py::value_error("there must be at least " + std::to_string(least) +
                          " rows, but there are " + std::to_string(n));
  return biased ? n * (n + 1) / 2 : n * (n - 1) / 2;
}

std::vector<GramInput> inputs_of(const std::vector<View>& views,
                                 const std::vector<std::string>& operands) {
  std::vector<GramInput> layers;
  for (size_t i = 0; i < views.size(); ++i) {
    layers.push_back(input_of(views[i], operands[i]));
    views[i].needs_shape(views[0].rows(), views[i].columns());
  }
  return layers;
}

std::vector<View> views_of(const py::sequence& layers) {
  std::vector<View> views;
  views.reserve(layers.size());
  for (py::handle x : layers) views.emplace_back(x, "x", 2);
  if (views.empty()) throw py::value_error("there are no layers");
  return views;
}

size_t gram_finish_workspace(const py::sequence& layers_, int threads) {
  const std::vector<View> views = views_of(layers_);
  const std::vector<GramInput> layers =
      inputs_of(views, std::vector<std::string>(views.size(), "float32"));
  needs_threads(threads);
  return cpu_kernels().gram_finish_workspace(layers.data(), int64_t(layers.size()), threads);
}

void gram_finish(const py::sequence& layers_, const py::sequence& operands, py::handle packed_,
                 py::handle diagonal_, py::handle row_sums_, py::handle summary_,
                 py::handle workspace_, bool biased, int threads) {
  const std::vector<View> views = views_of(layers_);
  if (operands.size() != views.size())
    throw py::value_error("`operands` must name one for each layer");
  std::vector<std::string> names;
  for (py::handle operand : operands) names.push_back(operand.cast<std::string>());
  const std::vector<GramInput> layers = inputs_of(views, names);
  const View packed(packed_, "packed", 2), diagonal(diagonal_, "diagonal", 2);
  const View row_sums(row_sums_, "row_sums", 2), summary(summary_, "summary", 2);
  const View workspace(workspace_, "workspace", 1);
  const int64_t count = int64_t(layers.size()), n = layers[0].n;
  needs_threads(threads);
  packed.needs_shape(count, packed_length(n, biased));
  diagonal.needs_shape(count, n);
  row_sums.needs_shape(count, n);
  summary.needs_shape(count, 5);
  for (const View* view : {&packed, &diagonal, &row_sums, &summary}) {
    view->needs_float64();
    needs_cpu(*view);
  }
  packed.needs_own_memory({&diagonal, &row_sums, &summary, &workspace});
  diagonal.needs_own_memory({&row_sums, &summary, &workspace});
  row_sums.needs_own_memory({&summary, &workspace});
  summary.needs_own_memory({&workspace});
  std::vector<Finished> out;
  for (int64_t i = 0; i < count; ++i) {
    for (const View* view : {&packed, &diagonal, &row_sums, &summary, &workspace})
      view->needs_own_memory({&views[size_t(i)]});
    out.push_back({reinterpret_cast<double*>(packed.data) + i * packed.row_stride(),
                   reinterpret_cast<double*>(diagonal.data) + i * diagonal.row_stride(),
                   reinterpret_cast<double*>(row_sums.data) + i * row_sums.row_stride(),
                   reinterpret_cast<double*>(summary.data) + i * summary.row_stride()});
  }
  const CpuKernels& kernels = cpu_kernels();
  GramFinishArgs args;
  args.layers = layers.data();
  args.out = out.data();
  args.count = count;
  args.estimator = biased ? Estimator::biased : Estimator::unbiased;
  args.workspace = aligned_start(
      workspace, kernels.gram_finish_workspace(layers.data(), count, threads));
  args.threads = threads;
  py::gil_scoped_release release;
  kernels.gram_finish(args);
}

void finish(py::handle k_, py::handle stats_, py::handle packed_, py::handle diagonal_,
            py::handle row_sums_, py::handle summary_, bool biased) {
  const View k(k_, "k", 2), stats(stats_, "stats", 1), packed(packed_, "packed", 1);
  const View diagonal(diagonal_, "diagonal", 1), row_sums(row_sums_, "row_sums", 1);
  const View summary(summary_, "summary", 1);
  const int64_t n = k.rows();
  const int64_t length = packed_length(n, biased);
  k.needs_shape(n, n);
  stats.needs_shape(3);
  packed.needs_shape(length);
  diagonal.needs_shape(n);
  row_sums.needs_shape(n);
  summary.needs_shape(5);
  for (const View* view : {&k, &stats, &packed, &diagonal, &row_sums, &summary}) {
    view->needs_float64();
    needs_cpu(*view);
  }
  packed.needs_own_memory({&k, &stats, &diagonal, &row_sums, &summary});
  diagonal.needs_own_memory({&k, &stats, &row_sums, &summary});
  row_sums.needs_own_memory({&k, &stats, &summary});
  summary.needs_own_memory({&k, &stats});
  FinishArgs args;
  args.k = reinterpret_cast<const double*>(k.data);
  args.n = n;
  args.k_stride = k.row_stride();
  args.stats = reinterpret_cast<const double*>(stats.data);
  args.estimator = biased ? Estimator::biased : Estimator::unbiased;
  args.packed = reinterpret_cast<double*>(packed.data);
  args.diagonal = reinterpret_cast<double*>(diagonal.data);
  args.row_sums = reinterpret_cast<double*>(row_sums.data);
  args.summary = reinterpret_cast<double*>(summary.data);
  const CpuKernels& kernels = cpu_kernels();
  py::gil_scoped_release release;
  kernels.finish(args);
}

void hsic_pairs(py::handle a_, py::handle b_, py::handle out_, int threads) {
  const View a(a_, "a", 2), b(b_, "b", 2), out(out_, "out", 2);
  needs_threads(threads);
  b.needs_shape(b.rows(), a.columns());
  out.needs_shape(a.rows(), b.rows());
  for (const View* view : {&a, &b, &out}) {
    view->needs_float64();
    needs_cpu(*view);
  }
  out.needs_own_memory({&a, &b});
  HsicArgs args;
  args.a = reinterpret_cast<const double*>(a.data);
  args.b = reinterpret_cast<const double*>(b.data);
  args.rows_a = a.rows();
  args.rows_b = b.rows();
  args.length = a.columns();
  args.a_stride = a.row_stride();
  args.b_stride = b.row_stride();
  args.symmetric = a.data == b.data && a.rows() == b.rows() && a.row_stride() == b.row_stride();
  args.out = reinterpret_cast<double*>(out.data);
  args.out_stride = out.row_stride();
  args.threads = threads;
  const CpuKernels& kernels = cpu_kernels();
  py::gil_scoped_release release;
  kernels.hsic_pairs(args);
}

#ifdef FASTCKA_WITH_CUDA
// The versions for GPUs; what each argument holds is said in kernels.h. Tables lie on the GPU, so
// what they say cannot be checked here.

// The device of a call, and the stream that torch works on there now.
struct Device {
  int index;
  void* stream = nullptr;

  Device(const View& of, std::initializer_list<const View*> others) : index(of.device.device_id) {
    for (const View* other : others) other->needs_device_of(of);
#ifndef FASTCKA_EMULATE_CUDA
    if (of.device.device_type != kDLCUDA)
      throw std::runtime_error(std::string("`") + of.name + "` must be on a CUDA device");
    if (of.api->current_work_stream(kDLCUDA, index, &stream) != 0) throw py::error_already_set();
#endif
  }
};

// The address of a dense tensor of `count` values or more.
template <class T>
T* address(const View& view, DLDataTypeCode code, int64_t count) {
  if (view.dtype.code != code || view.dtype.bits != 8 * sizeof(T) || view.dtype.lanes != 1)
    throw py::type_error(std::string("`") + view.name + "` is of the wrong type");
  if (view.rows() > 1 && view.row_stride() != view.columns())
    throw py::value_error(std::string("`") + view.name + "` must be contiguous");
  if (view.rows() * view.columns() < count)
    throw py::value_error(std::string("`") + view.name + "` must hold " + std::to_string(count) +
                          " values");
  return reinterpret_cast<T*>(view.data);
}

template <class T>
const T* table(const View& view, int64_t count) {
  return reinterpret_cast<const T*>(address<int64_t>(view, kDLInt, count * int64_t(sizeof(T) / 8)));
}

cuda::TileKind kind_of(const std::string& name) {
  if (name == "square") return cuda::TileKind::square;
  if (name == "pair") return cuda::TileKind::pair;
  if (name == "triangle") return cuda::TileKind::triangle;
  throw py::value_error("`kind` must be square, pair or triangle, but is " + name);
}

void cuda_sample(py::handle base_, py::handle layers_, py::handle pivots_, py::handle largest_,
                 py::handle norms_, int64_t n, int64_t piece, int64_t rows, int64_t block,
                 int64_t padding) {
  const View base(base_, "base", 2), layers(layers_, "layers", 2), pivots(pivots_, "pivots", 1);
  const View largest(largest_, "largest", 1), norms(norms_, "norms", 2);
  const Device device(base, {&layers, &pivots, &largest, &norms});
  cuda::SampleArgs args;
  args.base = base.data;
  args.dtype = dtype_of(base);
  args.piece = piece;
  args.count = layers.rows();
  args.layers = table<cuda::Layer>(layers, args.count);
  args.n = n;
  args.rows = rows;
  args.block = block;
  args.padding = padding;
  args.blocks = norms.columns();
  args.pivots = address<float>(pivots, kDLFloat, 0);
  args.largest = address<int32_t>(largest, kDLInt, args.count);
  args.norms = address<double>(norms, kDLFloat, args.count * args.blocks);
  py::gil_scoped_release release;
  cuda::sample(args, device.index, device.stream);
}

void cuda_products(py::handle base_, py::handle segments_, py::handle begins_, py::handle pivots_,
                   py::handle largest_, py::handle partials_, const std::string& operand, int64_t n,
                   int64_t piece, const std::string& kind, int64_t rows, int64_t columns,
                   int64_t step) {
  const View base(base_, "base", 2), segments(segments_, "segments", 2);
  const View begins(begins_, "begins", 1), pivots(pivots_, "pivots", 1);
  const View largest(largest_, "largest", 1), partials(partials_, "partials", 2);
  const Device device(base, {&segments, &begins, &pivots, &largest, &partials});
  cuda::ProductsArgs args;
  args.base = base.data;
  args.dtype = dtype_of(base);
  args.operand = operand_of(operand);
  args.piece = piece;
  args.kind = kind_of(kind);
  args.rows = rows;
  args.columns = columns;
  args.step = step;
  args.segments = table<cuda::Segment>(segments, segments.rows());
  args.begins = address<int64_t>(begins, kDLInt, 2);
  args.programs = begins.columns() - 1;
  args.n = n;
  args.pivots = address<float>(pivots, kDLFloat, 0);
  args.largest = address<int32_t>(largest, kDLInt, 1);
  args.partials = address<float>(
      partials, kDLFloat,
      segments.rows() * rows * columns * (args.kind == cuda::TileKind::triangle ? 3 : 1));
  py::gil_scoped_release release;
  cuda::products(args, device.index, device.stream);
}

void cuda_add_up(py::handle works_, py::handle partials_, py::handle largest_, py::handle k_,
                 const std::string& kind, int64_t rows, int64_t columns) {
  const View works(works_, "works", 2), partials(partials_, "partials", 2);
  const View largest(largest_, "largest", 1), k(k_, "k", 2);
  const Device device(k, {&works, &partials, &largest});
  cuda::AddUpArgs args;
  args.count = works.rows();
  args.works = table<cuda::Work>(works, args.count);
  args.kind = kind_of(kind);
  args.n = k.columns();
  args.rows = rows;
  args.columns = columns;
  args.partials = address<float>(partials, kDLFloat, rows * columns);
  args.largest = address<int32_t>(largest, kDLInt, 1);
  args.k = address<double>(k, kDLFloat, 0);
  py::gil_scoped_release release;
  cuda::add_up(args, device.index, device.stream);
}

void cuda_recentre(py::handle k_, py::handle means_) {
  const View k(k_, "k", 2), means(means_, "means", 2);
  const Device device(k, {&means});
  cuda::RecentreArgs args;
  args.layers = means.rows();
  args.n = means.columns();
  args.k = address<double>(k, kDLFloat, args.layers * args.n * args.n);
  args.means = address<double>(means, kDLFloat, 0);
  py::gil_scoped_release release;
  cuda::recentre(args, device.index, device.stream);
}

void cuda_finish(py::handle k_, py::handle stats_, py::handle packed_, py::handle diagonal_,
                 py::handle row_sums_, py::handle summary_, py::handle sums_, py::handle squares_,
                 bool biased, bool pivoted) {
  const View k(k_, "k", 2), stats(stats_, "stats", 2), packed(packed_, "packed", 2);
  const View diagonal(diagonal_, "diagonal", 2), row_sums(row_sums_, "row_sums", 2);
  const View summary(summary_, "summary", 2), sums(sums_, "sums", 2);
  const View squares(squares_, "squares", 2);
  const int64_t layers = stats.rows(), n = k.columns();
  const Device device(k, {&stats, &packed, &diagonal, &row_sums, &summary, &sums, &squares});
  packed.needs_shape(layers, packed_length(n, biased));
  diagonal.needs_shape(layers, n);
  row_sums.needs_shape(layers, n);
  summary.needs_shape(layers, 5);
  if (!pivoted) stats.needs_shape(layers, 3);
  for (const View* view : {&packed, &diagonal, &row_sums, &summary}) view->needs_float64();
  packed.needs_own_memory({&k, &stats, &diagonal, &row_sums, &summary, &sums, &squares});
  diagonal.needs_own_memory({&k, &stats, &row_sums, &summary, &sums, &squares});
  row_sums.needs_own_memory({&k, &stats, &summary, &sums, &squares});
  summary.needs_own_memory({&k, &stats, &sums, &squares});
  cuda::FinishAllArgs args;
  args.k = address<double>(k, kDLFloat, layers * n * n);
  args.blocks = stats.columns();
  args.stats = address<double>(stats, kDLFloat, layers * args.blocks);
  args.pivoted = pivoted;
  args.out = {reinterpret_cast<double*>(packed.data), reinterpret_cast<double*>(diagonal.data),
              reinterpret_cast<double*>(row_sums.data), reinterpret_cast<double*>(summary.data)};
  args.packed_stride = packed.row_stride();
  args.diagonal_stride = diagonal.row_stride();
  args.row_sums_stride = row_sums.row_stride();
  args.summary_stride = summary.row_stride();
  args.sums = address<double>(sums, kDLFloat, layers * n * 2);
  args.squares = address<double>(squares, kDLFloat, layers * n * 2);
  args.layers = layers;
  args.n = n;
  args.estimator = biased ? Estimator::biased : Estimator::unbiased;
  py::gil_scoped_release release;
  cuda::finish(args, device.index, device.stream);
}

void cuda_hsic_pairs(py::handle a_, py::handle b_, py::handle out_, py::handle partials_,
                     int64_t run) {
  const View a(a_, "a", 2), b(b_, "b", 2), out(out_, "out", 2), partials(partials_, "partials", 2);
  const Device device(a, {&b, &out, &partials});
  b.needs_shape(b.rows(), a.columns());
  out.needs_shape(a.rows(), b.rows());
  for (const View* view : {&a, &b, &out}) view->needs_float64();
  out.needs_own_memory({&a, &b, &partials});
  cuda::HsicRunsArgs args;
  args.a = reinterpret_cast<const double*>(a.data);
  args.b = reinterpret_cast<const double*>(b.data);
  args.rows_a = a.rows();
  args.rows_b = b.rows();
  args.length = a.columns();
  args.a_stride = a.row_stride();
  args.b_stride = b.row_stride();
  args.out = reinterpret_cast<double*>(out.data);
  args.out_stride = out.row_stride();
  args.run = run;
  args.runs = (args.length + run - 1) / run;
  args.partials = address<double>(partials, kDLFloat, args.runs * args.rows_a * args.rows_b);
  py::gil_scoped_release release;
  cuda::hsic_pairs(args, device.index, device.stream);
}
#endif

double multiply_adds(int64_t rounds, int threads) {
  needs_threads(threads);
  std::vector<float> out(size_t(threads), 0.5f);
  py::gil_scoped_release release;
  return cpu_kernels().multiply_adds(rounds, threads, out.data());
}

py::dict build_info() {
  py::dict info;
  py::dict isas;
  int count = 0;
  const IsaState* states = cpu_isas(&count);
  for (int i = 0; i < count; ++i) isas[states[i].kernels->isa] = states[i].supported;
  info["version"] = FASTCKA_VERSION;
  info["commit"] = FASTCKA_COMMIT;
  info["compiler"] = FASTCKA_COMPILER;
  info["isas"] = isas;
#ifdef FASTCKA_WITH_CUDA
  info["cuda"] = FASTCKA_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
#endif
#ifdef FASTCKA_WITH_OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of fastcka. Private: use fastcka.kernels.";
  m.def("gram_workspace", &gram_workspace);
  m.def("gram", &gram);
  m.def("finish", &finish);
  m.def("gram_finish_workspace", &gram_finish_workspace);
  m.def("gram_finish", &gram_finish);
  m.def("hsic_pairs", &hsic_pairs);
#ifdef FASTCKA_WITH_CUDA
  m.def("cuda_sample", &cuda_sample);
  m.def("cuda_products", &cuda_products);
  m.def("cuda_add_up", &cuda_add_up);
  m.def("cuda_recentre", &cuda_recentre);
  m.def("cuda_finish", &cuda_finish);
  m.def("cuda_hsic_pairs", &cuda_hsic_pairs);
#endif
  m.def("multiply_adds", &multiply_adds);
  m.def("build_info", &build_info);
  m.def("isa", [] { return std::string(cpu_kernels().isa); });
}
