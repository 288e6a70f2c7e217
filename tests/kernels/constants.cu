// Products with constants, and constants made, on single elements.

#include "constant.cuh"

extern "C" __global__ void times_constant(const Fr* a, const Constant* w, Fr* out) {
    const Constant constant = w[0];
    store(out, 0, load(a, 0) * constant);
}

extern "C" __global__ void times_negated(const Fr* a, const Constant* w, Fr* out) {
    const Constant constant = w[0];
    store(out, 0, load(a, 0) * -constant);
}

extern "C" __global__ void make_constant(const Fr* w, const Fr* minus_inverse_of_p, Constant* out) {
    out[0] = constant_of(load(w, 0), load(minus_inverse_of_p, 0));
}
