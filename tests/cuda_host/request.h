#pragma once

#include <string>

#include "common/dispatch.h"

// One call of a kernel: a line DIRECTORY name=value... on standard input. Array `a` comes from the
// file a.in there, and goes to a.out after the call, inputs as well. Each lies in heap memory of
// its own and of exactly its size, so that AddressSanitizer sees the first element out of bounds,
// and begins `offset` elements behind an aligned address.
class Request {
 public:
  std::string text(const std::string& name) const;
  int64_t integer(const std::string& name) const { return std::stoll(text(name)); }
  double number(const std::string& name) const { return std::stod(text(name)); }
  bool flag(const std::string& name) const { return integer(name) != 0; }

  // Null where there is no file of that name.
  template <class T>
  T* input(const std::string& name) {
    return static_cast<T*>(read(name, sizeof(T)));
  }

  // n elements, filled with what no kernel would leave there: a missing store shows.
  template <class T>
  T* output(const std::string& name, int64_t n, bool wanted = true) {
    return wanted ? static_cast<T*>(allocate(name, n * sizeof(T), sizeof(T))) : nullptr;
  }

  // Calls f(std::type_identity<T>{}) with the type of value `dtype`.
  template <class F>
  void dispatch(F&& f) const {
    torchcalc::dispatch_dtype(dtype(), "request", f);
  }

 private:
  torchcalc::ScalarType dtype() const;
  void* read(const std::string& name, size_t element);
  void* allocate(const std::string& name, size_t bytes, size_t element);
};

// What a program does with its request.
void answer(Request& request);
