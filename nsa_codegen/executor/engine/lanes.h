// Elementwise instructions: one function per lane, applied to the active lanes of a warp.
#pragma once
#include <type_traits>

#include "state.h"

template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, u64, u32>;
template <class T>
using Raw = std::conditional_t<sizeof(T) == 8, u64,
                               std::conditional_t<sizeof(T) == 4, u32, std::conditional_t<sizeof(T) == 2, u16, u8>>>;

// A row read as 32 values of T; narrow types sit in the low bits of 32-bit slots.
template <class T>
struct In {
  const Slot<T>* p;
  In(Warp& w, i32 row) : p(reinterpret_cast<const Slot<T>*>(w.row(row))) {}
  T operator[](int l) const { return bits<T>(Raw<T>(p[l])); }
};

template <class T, class F>
inline void write_lanes(Warp& w, i32 row, u32 mask, F f) {
  auto* d = reinterpret_cast<Slot<T>*>(w.row(row));
  if (mask == ~0u) {
#pragma GCC ivdep
    LANES
      d[l] = Slot<T>(bits<Raw<T>>(T(f(l))));
  } else {
    ACTIVE (mask) d[l] = Slot<T>(bits<Raw<T>>(T(f(l))));
  }
}
template <class F>
inline void write_predicate(Warp& w, i32 row, u32 mask, F f) {
  u32 r = 0;
  LANES
    r |= u32(bool(f(l))) << l;
  u32* d = w.row(row);
  d[0] = (d[0] & ~mask) | (r & mask);
}
inline void put_predicate(Warp& w, i32 row, u32 mask, u32 value) {
  u32* d = w.row(row);
  d[0] = (d[0] & ~mask) | (value & mask);
}

template <class D, class A, class F>
inline void unary(Warp& w, const Ins& i, u32 m, F f) {
  In<A> a(w, i.ops[1]);
  write_lanes<D>(w, i.ops[0], m, [&](int l) { return f(a[l]); });
}
template <class D, class A, class B, class F>
inline void binary(Warp& w, const Ins& i, u32 m, F f) {
  In<A> a(w, i.ops[1]);
  In<B> b(w, i.ops[2]);
  write_lanes<D>(w, i.ops[0], m, [&](int l) { return f(a[l], b[l]); });
}
template <class D, class A, class B, class C, class F>
inline void ternary(Warp& w, const Ins& i, u32 m, F f) {
  In<A> a(w, i.ops[1]);
  In<B> b(w, i.ops[2]);
  In<C> c(w, i.ops[3]);
  write_lanes<D>(w, i.ops[0], m, [&](int l) { return f(a[l], b[l], c[l]); });
}
#define UNARY(name, D, A, expr) \
  OP(name, [](Warp& w, const Ins& i, u32 m) { unary<D, A>(w, i, m, [](A a) -> D { return expr; }); })
#define BINARY(name, D, A, B, expr) \
  OP(name, [](Warp& w, const Ins& i, u32 m) { binary<D, A, B>(w, i, m, [](A a, B b) -> D { return expr; }); })
#define TERNARY(name, D, A, B, C, expr) \
  OP(name, [](Warp& w, const Ins& i, u32 m) { ternary<D, A, B, C>(w, i, m, [](A a, B b, C c) -> D { return expr; }); })
