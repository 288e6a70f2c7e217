// One operation a kernel, on single elements: what the assembly holds beside it are a few loads and stores.

#include "curve.cuh"

extern "C" __global__ void multiply_fq(const Fq* a, const Fq* b, Fq* out) { store(out, 0, load(a, 0) * load(b, 0)); }

extern "C" __global__ void square_fq(const Fq* a, Fq* out) { store(out, 0, square(load(a, 0))); }

extern "C" __global__ void multiply_fr(const Fr* a, const Fr* b, Fr* out) { store(out, 0, load(a, 0) * load(b, 0)); }

extern "C" __global__ void inverse_fq(const Fq* a, Fq* out) { store(out, 0, inverse(load(a, 0))); }

extern "C" __global__ void add_affine_g1(Xyzz<Fq>* p, const Affine<Fq>* q) {
    store(p, 0, add_affine(load(p, 0), load(q, 0)));
}
