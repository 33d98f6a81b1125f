#pragma once

#include <cstdint>

// Arithmetic on subnormal numbers is twenty times slower on many CPUs. Whether they count as 0, as
// operands and as results, is two bits of a thread's control register.
namespace torchcalc::cpu {

#if defined(__SSE2__)
using ControlWord = uint32_t;
constexpr ControlWord kFlush = 0x8040;  // FTZ and DAZ of MXCSR
inline ControlWord control_word() { return __builtin_ia32_stmxcsr(); }
inline void set_control_word(ControlWord word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
using ControlWord = uint64_t;
constexpr ControlWord kFlush = 1u << 24;  // FZ of FPCR
inline ControlWord control_word() {
  ControlWord word;
  __asm__ volatile("mrs %0, fpcr" : "=r"(word));
  return word;
}
inline void set_control_word(ControlWord word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
using ControlWord = uint32_t;
constexpr ControlWord kFlush = 0;
inline ControlWord control_word() { return 0; }
inline void set_control_word(ControlWord) {}
#endif

// While it lives, this thread has the bits kFlush of `word`.
class SubnormalMode {
 public:
  explicit SubnormalMode(ControlWord word) : before_(control_word()) {
    set((before_ & ~kFlush) | (word & kFlush));
  }
  ~SubnormalMode() { set((control_word() & ~kFlush) | (before_ & kFlush)); }
  SubnormalMode(const SubnormalMode&) = delete;
  SubnormalMode& operator=(const SubnormalMode&) = delete;

 private:
  // To write it costs more than to read it.
  static void set(ControlWord word) {
    if (word != control_word()) set_control_word(word);
  }

  const ControlWord before_;
};

}  // namespace torchcalc::cpu
