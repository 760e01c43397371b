# The HTTP API on an NVIDIA card:
#
#   docker build -t triptych .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v triptych:/data -e TRIPTYCH_TOKEN=… triptych \
#       --model black-forest-labs/FLUX.2-klein-4B
#
# Options behind the image's name are those of `triptych serve`. Models are downloaded into the volume; so is the
# queue, which outlives the container.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# PyTorch from PyPI brings the CUDA libraries it was built with; of the image it needs none.
RUN python3 -m venv /opt/triptych \
    && /opt/triptych/bin/pip install --no-cache-dir -c constraints.txt '.[app,quantization]'

FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home triptych \
    && install -d -o triptych -g triptych /data
COPY --from=build /opt/triptych /opt/triptych
ENV PATH=/opt/triptych/bin:$PATH \
    HF_HOME=/data/huggingface \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=5)"]
STOPSIGNAL SIGTERM
# Without TRIPTYCH_TOKEN it ends with a sentence: 0.0.0.0 is not this machine's own address.
ENTRYPOINT ["triptych", "serve", "--host", "0.0.0.0", "--port", "7860", "--work", "/data/work"]
CMD ["--model", "pocket-klein"]
