# Two images. `docker build --target cpu .` runs `s2l demo`. `docker build --target gpu .` trains on NVIDIA GPUs
# (`docker run --gpus all --shm-size 16g ...`): the wheels of torch and vLLM bring CUDA, the host brings the driver.
# Debian drops old versions of its packages, so none is pinned (DL3008); the images need no certain folder (DL3000).
# hadolint global ignore=DL3000,DL3008
FROM python:3.11-slim AS base
# gcc: Triton compiles kernels' launchers at run time
RUN apt-get update && apt-get install -y --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR s2l_ext
COPY . .

FROM base AS cpu
RUN make setup
ENTRYPOINT [".venv/bin/s2l"]
CMD ["demo"]

FROM base AS gpu
RUN pip install --no-cache-dir --require-hashes --no-deps -r requirements/gpu.lock && pip install --no-cache-dir --no-deps .
ENTRYPOINT ["s2l"]
CMD ["doctor"]
