# Two images: `docker build --target cpu .` (the default) and `--target cuda`. Needs BuildKit.
#
# The bases can be exchanged together, for a mirror or another release: the C library of RUN_BASE must not be older than
# that of BUILD_BASE. The tag of BUILD_BASE is the version in rust-toolchain.toml.
ARG BUILD_BASE=rust:1.95.0-slim-bookworm
ARG RUN_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build-cpu
WORKDIR /build
# Without the line tables: they are 100 of the binary's 115 MB. Function names stay, so that a backtrace can be read.
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
COPY . .
# The caches outlive the layer: after a change only this crate is compiled. The binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,id=accordion-target-cpu,sharing=locked \
    cargo build --release --locked --package accordion && cp target/release/accordion /accordion

# nvcc compiles the kernels into the binary, which loads the driver's library when it runs: nothing of CUDA is copied on.
FROM ${BUILD_BASE} AS toolkit
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/cuda-toolkit.sh /scripts/
RUN /scripts/cuda-toolkit.sh /opt/cuda

FROM toolkit AS build-cuda
WORKDIR /build
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo CUDA_HOME=/opt/cuda/home
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,id=accordion-target-cuda,sharing=locked \
    cargo build --release --locked --package accordion --features cuda && cp target/release/accordion /accordion

FROM ${RUN_BASE} AS runtime
LABEL org.opencontainers.image.title="Accordion" \
      org.opencontainers.image.description="Compress a diffusion model once, serve it at every width." \
      org.opencontainers.image.licenses="Apache-2.0"
# `serve` looks for its config and the model here.
WORKDIR /srv/accordion
COPY LICENSE ./
COPY config/serve.toml config/
COPY models models
# A config that is mounted over ours keeps this address: the loopback interface of a container is reached by nobody.
ENV ACCORDION_LISTEN=0.0.0.0:8080
EXPOSE 8080
# By number, so that Kubernetes can see that it is not root. It owns nothing: the server writes no files.
USER 10001:10001
# Process 1 gets no signal's default action; the server handles SIGTERM and SIGINT itself.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["accordion", "healthcheck"]
ENTRYPOINT ["accordion"]
CMD ["serve"]

FROM runtime AS cuda
# For the NVIDIA container runtime, which mounts the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV ACCORDION_DEVICES=cuda:0
COPY --from=build-cuda /accordion /usr/local/bin/

FROM runtime AS cpu
COPY --from=build-cpu /accordion /usr/local/bin/
