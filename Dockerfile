# gpuprover for CPUs: a slim base, the library, its command and the service. GPUs: Dockerfile.cuda.
#
#   docker build -t gpuprover:0.1.0 .
#   docker run --rm -v "$PWD:/data" gpuprover:0.1.0 prove circuit.zkey witness.wtns proof.json public.json
#   docker compose -f deploy/compose.yaml up
#   docker compose -f deploy/compose.midnight.yaml up
#
# tests/deploy/test_dockerfile.py runs the steps of the build; the image itself has not been built by any test.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/gpuprover
ENV PATH=/opt/gpuprover/bin:$PATH
COPY . .
# Everything by version and hash (make lock), the build's own tool too; then nothing more may be fetched.
RUN pip install --no-cache-dir --require-hashes --requirement deploy/locks/build.txt \
        --requirement deploy/locks/server.txt \
    && pip install --no-cache-dir --no-index --no-deps --no-build-isolation .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="gpuprover" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/gpuprover/bin:$PATH \
    GPUPROVER_CACHE_DIR=/cache/gpuprover \
    GPUPROVER_SOLE_USER=1 \
    XDG_CACHE_HOME=/cache
# Writable for whoever runs it: docker run --user "$(id -u)" makes files in /data the caller's own.
RUN useradd --uid 10001 --create-home prover \
    && mkdir --mode=1777 /cache /data
COPY --from=build /opt/gpuprover /opt/gpuprover
USER 10001
WORKDIR /data
# No compiled code is in the image: Numba's holds for one kind of CPU, and the machine that builds an image is
# rarely the one that runs it. It is compiled at the first start, and stays on a volume.
VOLUME /cache
EXPOSE 8080
# Of gpuprover midnight serve.
EXPOSE 6300
# Of commands; the service has a check of its own in deploy/compose.yaml.
HEALTHCHECK --interval=60s --timeout=20s --start-period=20s CMD ["gpuprover", "doctor", "--check", "--quiet"]
ENTRYPOINT ["gpuprover"]
CMD ["doctor"]
