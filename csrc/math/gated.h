#pragma once

#include "math/activations.h"

// The gated linear unit y = f(g) v of a gate g and a value v, and its derivatives.
namespace torchcalc::math {

template <class Arith = Exact, class Act, class T>
TC_HD T gated(const Act& act, T g, T v) {
  return act.template value<Arith>(g) * v;
}

template <class T>
struct GatedGrad {
  T dg, dv;
};

// VJP of gated: dg = c v f'(g), dv = c f(g).
template <class Arith = Exact, class Act, class T>
TC_HD GatedGrad<T> gated_grad(const Act& act, T c, T g, T v) {
  return {act.template d<1, Arith>(c * v, g), c * act.template value<Arith>(g)};
}

template <class T>
struct GatedGradGrad {
  T dc, dg, dv;
};

// VJP of gated_grad, whose cotangents are cg and cv: dc = cg v f'(g) + cv f(g),
// dg = c (cg v f''(g) + cv f'(g)), dv = c cg f'(g).
template <class Arith = Exact, class Act, class T>
TC_HD GatedGradGrad<T> gated_grad_grad(const Act& act, T cg, T cv, T c, T g, T v) {
  return {act.template d<1, Arith>(cg * v, g) + cv * act.template value<Arith>(g),
          act.template d<2, Arith>(c * cg * v, g) + act.template d<1, Arith>(c * cv, g),
          act.template d<1, Arith>(c * cg, g)};
}

}  // namespace torchcalc::math
