# Two images from one file:
#   docker build -t compress .                                     the pipeline; CPU and, given a driver, GPU
#   docker build -t compress:cpu --build-arg TORCH_INDEX=… .       without the CUDA libraries, about 4 GB smaller:
#                                                                  the index of CPU wheels that pytorch.org names
#   docker build -t student --target serve .                       the deploy folder and ONNX Runtime, nothing else
ARG BASE=python:3.11-slim

FROM ${BASE} AS pipeline
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /project
COPY requirements.lock .
RUN if [ -n "${TORCH_INDEX}" ]; then \
      pip install --no-cache-dir --index-url "${TORCH_INDEX}" \
        $(sed -n 's/^\(torch\(vision\)\?==[0-9.]*\).*/\1/p' requirements.lock) && \
      awk '/^[a-z]/ {skip = /^(nvidia|cuda|triton|torch)/} !skip' requirements.lock > requirements-cpu.lock && \
      pip install --no-cache-dir --no-deps --require-hashes -r requirements-cpu.lock; \
    else pip install --no-cache-dir --require-hashes -r requirements.lock; fi
COPY . .
RUN dvc config -q --local core.no_scm true && useradd --create-home --uid 1000 compress && chown -R compress /project
USER compress
ENV DO_NOT_TRACK=1 ORT_DISABLE_TELEMETRY=1
CMD ["sh", "-c", "dvc repro && python -m pipelines report"]

FROM ${BASE} AS serve
COPY requirements-serve.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements-serve.lock && useradd --uid 1000 student
WORKDIR /student
COPY compress/ compress/
COPY pipelines/ pipelines/
COPY deploy/ deploy/
USER student
# ONNX Runtime 1.31 has telemetry, on unless told otherwise, and warns where it cannot write its cache.
ENV DO_NOT_TRACK=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
CMD ["python", "-m", "pipelines", "serve", "deploy", "--host", "0.0.0.0"]
