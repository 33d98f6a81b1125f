#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/macros.h"
#include "math/activations.h"
#include "math/philox.h"

// The table of contents of the native side. Conventions: `activation`, its parameters `a` and `b`
// and `saved_as` are those of math/activations.h; `seed`, `threshold`, `samples`, `block` and
// `shared`, which say what mask is drawn, those of ops/mask.h and math/mask.h. Only torchcalc/ops
// calls these; torchcalc.functional is the public face.
STABLE_TORCH_LIBRARY(torchcalc, m) {
  m.def(
      "linear_act(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? seed, "
      "int activation, float a, float b, int threshold, SymInt samples, SymInt[]? block) "
      "-> Tensor");
  m.def(
      "linear_act_keep(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? seed, "
      "int activation, float a, float b, int threshold, SymInt samples, SymInt[]? block) "
      "-> (Tensor y, Tensor kept)");
  m.def(
      "mlp(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
      "Tensor? residual, Tensor? hidden_seed, Tensor? seed, int activation, float a, float b, "
      "bool gated, int hidden_threshold, int threshold, SymInt samples, SymInt[]? hidden_block, "
      "SymInt[]? block) -> Tensor");
  m.def(
      "mlp_keep(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
      "Tensor? residual, Tensor? hidden_seed, Tensor? seed, int activation, float a, float b, "
      "bool gated, int hidden_threshold, int threshold, SymInt samples, SymInt[]? hidden_block, "
      "SymInt[]? block) -> (Tensor y, Tensor kept)");
  m.def(
      "mlp_grad(Tensor grad, Tensor weight2, Tensor z, Tensor? hidden_seed, int activation, "
      "float a, float b, bool gated, int hidden_threshold, SymInt samples, SymInt[]? hidden_block) "
      "-> (Tensor dz, Tensor dweight2, Tensor dbias1)");
  m.def(
      "act(Tensor z, Tensor? residual, Tensor? seed, int activation, float a, float b, "
      "int threshold, SymInt samples, SymInt[]? block) -> Tensor");
  m.def(
      "act_grad(Tensor grad, Tensor? saved, Tensor? seed, int activation, float a, float b, "
      "int threshold, SymInt samples, SymInt[]? block, int saved_as, int order) -> Tensor");
  m.def(
      "act_bias_grad(Tensor grad, Tensor? saved, Tensor? seed, int activation, float a, float b, "
      "int threshold, SymInt samples, SymInt[]? block, int saved_as) -> (Tensor dz, Tensor dbias)");
  m.def(
      "linear_act_grad(Tensor grad, Tensor? x, Tensor? weight, Tensor? saved, Tensor? seed, "
      "int activation, float a, float b, int threshold, SymInt samples, SymInt[]? block, "
      "int saved_as, bool bias) -> (Tensor dx, Tensor dweight, Tensor dbias)");
  m.def(
      "gated_linear(Tensor x, Tensor weight, Tensor? weight_value, Tensor? bias, "
      "Tensor? bias_value, Tensor? seed, int activation, float a, float b, int threshold, "
      "SymInt samples, SymInt[]? block) -> Tensor");
  m.def(
      "gated_linear_keep(Tensor x, Tensor weight, Tensor? weight_value, Tensor? bias, "
      "Tensor? bias_value, Tensor? seed, int activation, float a, float b, int threshold, "
      "SymInt samples, SymInt[]? block) -> (Tensor y, Tensor z)");
  m.def(
      "gated_grad(Tensor grad, Tensor z, Tensor? seed, int activation, float a, float b, "
      "int threshold, SymInt samples, SymInt[]? block) -> Tensor");
  m.def(
      "gated_bias_grad(Tensor grad, Tensor z, Tensor? seed, int activation, float a, float b, "
      "int threshold, SymInt samples, SymInt[]? block) -> (Tensor dz, Tensor dbias)");
  m.def(
      "gated_linear_grad(Tensor grad, Tensor? x, Tensor? weight, Tensor? weight_value, Tensor z, "
      "Tensor? seed, int activation, float a, float b, int threshold, SymInt samples, "
      "SymInt[]? block, bool pair, bool bias) "
      "-> (Tensor dx, Tensor dweight, Tensor dweight_value, Tensor dbias)");
  m.def(
      "gated_grad_grad(Tensor c, Tensor grad, Tensor z, Tensor? seed, int activation, float a, "
      "float b, int threshold, SymInt samples, SymInt[]? block) -> (Tensor dgrad, Tensor dz)");
  m.def(
      "dropout(Tensor x, Tensor? residual, Tensor seed, int threshold, SymInt samples, "
      "SymInt[]? block, SymInt shared, float scale, float shift, float fill) -> Tensor");
  m.def(
      "dropout_mask(SymInt[] shape, Tensor seed, int threshold, SymInt samples, SymInt[]? block, "
      "bool packed) -> Tensor");
  m.def("prox(Tensor x, Tensor? l1, Tensor? l2, float l1_value, float l2_value) -> Tensor");
  m.def(
      "prox_grad(Tensor grad, Tensor x, Tensor? l1, Tensor? l2, float l1_value, float l2_value) "
      "-> (Tensor dx, Tensor dl1, Tensor dl2)");
  m.def(
      "prox_x_grad(Tensor grad, Tensor x, Tensor? l1, Tensor? l2, float l1_value, float l2_value) "
      "-> Tensor");
  m.def(
      "prox_grad_grad(Tensor? cx, Tensor? c1, Tensor? c2, Tensor grad, Tensor x, Tensor? l1, "
      "Tensor? l2, float l1_value, float l2_value) "
      "-> (Tensor dgrad, Tensor dx, Tensor dl1, Tensor dl2)");
  m.def(
      "penalty_prox(Tensor v, Tensor? step, float step_value, int penalty, float[] numbers, "
      "int indexes) -> Tensor");
  m.def(
      "sgd_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor places, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
      "bool maximize, bool first_step, int penalty, float[] numbers, "
      "Tensor[] live, int[] fields, int rounding_seed=-1) -> ()");
  m.def(
      "adam_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor places, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, bool amsgrad, "
      "bool decoupled, bool maximize, int penalty, float[] numbers, bool adaptive, "
      "float prox_clip, "
      "Tensor[] live, int[] fields, int rounding_seed=-1) -> ()");
  m.def(
      "adagrad_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor places, "
      "float lr, float lr_decay, float weight_decay, float eps, bool maximize, int penalty, "
      "float[] numbers, bool adaptive, float prox_clip, "
      "Tensor[] live, int[] fields, int rounding_seed=-1) -> ()");
  m.def(
      "rmsprop_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor places, "
      "float lr, float alpha, float eps, float weight_decay, float momentum, bool centered, "
      "bool maximize, int penalty, float[] numbers, bool adaptive, float prox_clip, "
      "Tensor[] live, int[] fields, int rounding_seed=-1) -> ()");
  m.def(
      "ftrl_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor places, "
      "float lr, float lr_before, float lr_power, float beta, bool maximize, int penalty, "
      "float[] numbers, Tensor[] live, int[] fields, int rounding_seed=-1) -> ()");
  m.def(
      "optim_check(Tensor[] params, Tensor[] grads, Tensor[] states, int counts, Tensor places) "
      "-> ()");
}

namespace {

namespace py = pybind11;

// What the library was built with.
py::dict build_info() {
  using py::literals::operator""_a;
  return py::dict("version"_a = TORCHCALC_VERSION, "compiler"_a = __VERSION__,
                  "torch_abi_target"_a = "2.10", "cuda"_a = TORCHCALC_CUDA,
                  "cuda_archs"_a = TORCHCALC_CUDA_ARCHS);
}

// The instruction set that the kernels' SIMD clones run on, of those they were compiled for.
std::string cpu_capability() {
#if TC_HAS_SIMD_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2)";
  return "x86-64";
#else
  return "baseline";
#endif
}

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

// Philox4x32-10 of counter [4] and key [2]: lets tests compare with published known answers.
Words philox4x32(const Words& counter, const Words& key) {
  if (counter.size() != 4 || key.size() != 2) {
    throw std::invalid_argument("philox4x32: counter has 4 words and key has 2");
  }
  const uint32_t* c = counter.data();
  const auto words =
      torchcalc::math::philox4x32_10({{c[0], c[1], c[2], c[3]}}, key.data()[0], key.data()[1]);
  return Words(4, words.w);
}

// Whether two sequences hold the same objects. An optimizer asks that of thousands at each step.
bool same(const py::handle& a, const py::handle& b) {
  const auto sequence = [](const py::handle& h) {
    PyObject* fast = PySequence_Fast(h.ptr(), "same: not iterable");
    if (!fast) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(fast);
  };
  const py::object x = sequence(a), y = sequence(b);
  const auto n = PySequence_Fast_GET_SIZE(x.ptr());
  PyObject **first = PySequence_Fast_ITEMS(x.ptr()), **second = PySequence_Fast_ITEMS(y.ptr());
  return n == PySequence_Fast_GET_SIZE(y.ptr()) && std::equal(first, first + n, second);
}

// Whether `key` has these values in these dictionaries.
bool same_values(const py::list& dictionaries, const py::str& key, const py::list& values) {
  bool same = dictionaries.size() == values.size();
  for (size_t i = 0; same && i < values.size(); ++i) {
    const py::handle dictionary = dictionaries[i];
    same = PyDict_Check(dictionary.ptr()) &&
           PyDict_GetItemWithError(dictionary.ptr(), key.ptr()) == py::handle(values[i]).ptr();
  }
  return same;
}

// A byte for each object: 1 where it is None.
py::bytes missing(const py::list& objects) {
  std::string is_none(objects.size(), '\0');
  for (size_t i = 0; i < is_none.size(); ++i) {
    is_none[i] = PyList_GET_ITEM(objects.ptr(), i) == Py_None;
  }
  return is_none;
}

// What linear_act keeps of an activation for backward, a number of math::Saved.
int64_t saved_for(int64_t kind, double a, double b, bool residual, bool dropout) {
  namespace math = torchcalc::math;
  if (kind < 0 || kind >= math::kActivations) {
    throw std::invalid_argument("saved_for: unknown activation");
  }
  const math::Activation activation{static_cast<math::ActivationKind>(kind), a, b};
  return static_cast<int64_t>(math::saved_for(activation, residual, dropout));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "torchcalc's native kernels; importing it registers torch.ops.torchcalc.";
  m.def("build_info", &build_info);
  m.def("cpu_capability", &cpu_capability);
  m.def("missing", &missing, py::arg("objects"));
  m.def("same", &same, py::arg("a"), py::arg("b"));
  m.def("same_values", &same_values, py::arg("dictionaries"), py::arg("key"), py::arg("values"));
  m.def("saved_for", &saved_for, py::arg("code"), py::arg("a"), py::arg("b"), py::arg("residual"),
        py::arg("dropout"));
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
}
