#!/usr/bin/env bash
# Builds an image (`cpu`, the default, or `cuda`), runs it as a careful operator would, and fails unless it serves and
# stops as it should. For a Debian machine that reaches package registries but none of images: the Dockerfile's bases are
# made here, from debootstrap and this machine's Rust toolchain. No GPU is needed: the image for GPUs serves on the CPU.
# Leaves the images and the build cache for the next run, but no container, and no Docker daemon that was not there.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-cpu}"
image="accordion-smoke:$target"
work="$(mktemp -d)"
container=""
daemon=""

fail() {
    echo "docker-smoke: $*" >&2
    exit 1
}

cleanup() {
    [ -z "$container" ] || "$docker" rm --force "$container" >/dev/null
    if [ -n "$daemon" ]; then
        kill "$daemon"
        wait "$daemon" || true
    fi
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# What the Dockerfile builds from, and whether that is still the pinned toolchain.
bases="$(sed -n 's/^ARG BUILD_BASE=rust:\([0-9.]*\)-slim-\([a-z]*\)$/\1 \2/p' Dockerfile)"
read -r rust release <<<"$bases" || fail "the Dockerfile's BUILD_BASE is not rust:VERSION-slim-RELEASE"
grep -qx "ARG RUN_BASE=debian:$release-slim" Dockerfile || fail "the Dockerfile's RUN_BASE is not of $release"
grep -qx "channel = \"$rust\"" rust-toolchain.toml || fail "the Dockerfile builds with Rust $rust, rust-toolchain.toml not"

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v curl >/dev/null || missing+=(curl)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
fi

docker=docker
if ! docker info >/dev/null 2>&1; then
    dockerd >"$work/dockerd.log" 2>&1 &
    daemon=$!
    for _ in {1..60}; do
        docker info >/dev/null 2>&1 && break
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.5
    done
    docker info >/dev/null 2>&1 || { tail -n 5 "$work/dockerd.log" >&2; fail "dockerd did not start"; }
fi

# A newer client of another origin needs a plugin for BuildKit; Debian's own, if it is there too, may not.
export DOCKER_BUILDKIT=1
builds() {
    printf 'FROM scratch\nLABEL smoke=1\n' | "$1" build --quiet - >/dev/null 2>&1
}
for candidate in docker /usr/bin/docker; do
    if builds "$candidate"; then docker="$candidate"; break; fi
done
builds "$docker" || fail "docker cannot build with BuildKit here: install docker-buildx"

debian_base="accordion-smoke-debian:$release"
if ! "$docker" image inspect "$debian_base" >/dev/null 2>&1; then
    echo "== $debian_base"
    debootstrap --variant=minbase "$release" "$work/debian" >"$work/debootstrap.log" \
        || { tail -n 5 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
    # What the slim image lacks too.
    rm -rf "$work"/debian/var/{cache/apt,lib/apt/lists}/* "$work"/debian/usr/share/{doc,info,locale,man}/*
    tar -C "$work/debian" --numeric-owner -c . | "$docker" import - "$debian_base" >/dev/null
fi

rust_base="accordion-smoke-rust:$rust-$release"
if ! "$docker" image inspect "$rust_base" >/dev/null 2>&1; then
    echo "== $rust_base"
    sysroot="$(rustc --print sysroot)"
    mkdir -p "$work/rust/toolchain" "$work/rust/cargo"
    cp -a "$sysroot/bin" "$sysroot/lib" "$work/rust/toolchain/"
    # How this machine reaches its registries: whom it trusts, and where it looks.
    cp /etc/ssl/certs/ca-certificates.crt "$work/rust/"
    settings="${CARGO_HOME:-$HOME/.cargo}/config.toml"
    [ ! -e "$settings" ] || cp "$settings" "$work/rust/cargo/"
    "$docker" build --quiet --network host --build-arg BASE="$debian_base" --tag "$rust_base" --file - "$work/rust" <<'END'
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/
COPY toolchain /usr/local
COPY cargo /usr/local/cargo
ENV CARGO_HOME=/usr/local/cargo
END
fi

echo "== $image"
"$docker" build --network host --target "$target" --tag "$image" \
    --build-arg BUILD_BASE="$rust_base" --build-arg RUN_BASE="$debian_base" .
bytes="$("$docker" image inspect --format '{{.Size}}' "$image")"
base_bytes="$("$docker" image inspect --format '{{.Size}}' "$debian_base")"
echo "image: $((bytes / 1000000)) MB, of which $(((bytes - base_bytes) / 1000000)) MB are ours"

options=(--read-only --tmpfs /tmp --memory 1g --cap-drop ALL --security-opt no-new-privileges)
# In place of the GPU.
[ "$target" = cpu ] || options+=(--env ACCORDION_DEVICES=cpu)
container="$("$docker" run --detach --publish 127.0.0.1::8080 "${options[@]}" "$image")"

state() {
    "$docker" inspect --format "{{.State.$1}}" "$container"
}
for _ in {1..120}; do
    if [ "$(state Health.Status)" != starting ] || [ "$(state Running)" != true ]; then break; fi
    sleep 1
done
"$docker" logs "$container"
[ "$(state Health.Status)" = healthy ] || fail "the container is $(state Status) and $(state Health.Status), not healthy"
echo "healthy: $("$docker" inspect --format '{{(index .State.Health.Log 0).Output}}' "$container")"

uid="$("$docker" exec "$container" grep '^Uid:' /proc/1/status)"
[ "$uid" = "$(printf 'Uid:\t10001\t10001\t10001\t10001')" ] || fail "the server runs as $uid"
echo "$uid"

url="http://$("$docker" port "$container" 8080/tcp)"
curl --silent --show-error --fail --max-time 60 --request POST "$url/generate?budget=fast" \
    --header 'content-type: application/json' --data '{"class":"sneaker","seed":7}' \
    --output "$work/sneaker.png" --dump-header "$work/headers"
[ "$(head -c 8 "$work/sneaker.png" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] || fail "the answer is no PNG"
grep -i '^x-accordion-plan: [a-z0-9]*-[0-9]*@' "$work/headers" || fail "the answer does not say which plan ran"
curl --silent --show-error --fail --max-time 10 "$url/metrics" --output "$work/metrics"
grep '^accordion_requests_total{.*outcome="ok".*} 1$' "$work/metrics" || fail "/metrics does not count the image"

"$docker" stop --time 60 "$container" >/dev/null
[ "$(state ExitCode)" = 0 ] || { "$docker" logs "$container"; fail "the server ended with $(state ExitCode)"; }
echo "stopped: exit code 0 after SIGTERM"
