#!/usr/bin/env bash
# The Dockerfile, built and run as its head says: with Docker where it answers, else with Podman, which
# apt-get brings. Images to build from that cannot be fetched are made here, from Debian's packages and
# this machine's Rust; then CARGO_BUILD_JOBS and CARGO_PROFILE_… of the caller hold for the build too.
#
#   tests/drills/container.sh
#
# Ends with 77 and says why where it cannot be run. Takes as long as a build of the profile `dist`.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null
not_run() { echo "not run: $1"; exit 77; }
fail() { echo "error: $1" >&2; "${engine[@]}" logs "$name" >&2 2>/dev/null || true; exit 1; }
say() { echo "container ($SECONDS s): $1"; }

for port in 7777 8080; do
    ! (: </dev/tcp/127.0.0.1/$port) 2>/dev/null || not_run "port $port, which the documents name, is taken"
done
scratch=$(mktemp -d)
name=gennaker-drill-$$
flags=() limits=()
if docker info >/dev/null 2>&1; then
    kind=docker engine=(command docker)
else
    kind=podman
    [ "$(id -u)" = 0 ] || not_run 'no container engine answers, and to install one needs root'
    if ! { command -v podman && command -v runc && command -v mmdebstrap && command -v curl; } >/dev/null; then
        command -v apt-get >/dev/null || not_run 'no container engine answers, and Podman or mmdebstrap is missing'
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update && apt-get install -y --no-install-recommends podman runc iptables mmdebstrap curl; } \
            >/dev/null || not_run 'Podman cannot be installed'
    fi
    mkdir -p target/drills/containers
    engine=(podman --root "$PWD/target/drills/containers" --runroot /run/gennaker-drill
        --cgroup-manager cgroupfs --runtime runc)
    # No more than this machine may give.
    limits=(--ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=4096:4096)
    # The health check is part of Docker's format only. No network of its own is needed to build.
    flags=(--format docker --isolation chroot --layers=false)
fi
made=()
cleanup() {
    "${engine[@]}" rm -f "$name" >/dev/null 2>&1 || true
    "${engine[@]}" volume rm -f "$name" >/dev/null 2>&1 || true
    "${engine[@]}" rmi -f "$name" >/dev/null 2>&1 || true
    [ "$kind" = docker ] || umount -q "$PWD/target/drills/containers/overlay" 2>/dev/null || true
    rm -rf "$scratch"
}
trap cleanup EXIT

# An image from an archive, with these variables.
imported() {
    local archive=$1 image=$2 changes=() each
    shift 2
    for each in "$@"; do changes+=(--change "ENV $each"); done
    "${engine[@]}" import "${changes[@]}" "$archive" "$image" >"$scratch/import" 2>&1 || fail "$(cat "$scratch/import")"
}

# What it is built from, with the names that the Dockerfile has.
rust=$(sed -n 's/^ARG RUST=//p' Dockerfile) debian=$(sed -n 's/^ARG DEBIAN=//p' Dockerfile)
if ! { timeout 120 "${engine[@]}" pull -q "rust:$rust" && timeout 120 "${engine[@]}" pull -q "debian:$debian"; } >/dev/null 2>&1; then
    command -v mmdebstrap >/dev/null || not_run 'the images to build from cannot be fetched, and mmdebstrap is missing'
    release=${debian%-slim}
    mmdebstrap --quiet --variant=minbase "$release" "$scratch/debian.tar" \
        || not_run "neither the images to build from nor Debian $release can be fetched"
    imported "$scratch/debian.tar" debian:drill
    # With what cargo has fetched, so that the build needs nothing else.
    cargo fetch --quiet --locked
    home=${CARGO_HOME:-$HOME/.cargo}
    root=$scratch/root/usr/local
    mkdir -p "$root/cargo/registry"
    cp -a "$(rustc --print sysroot)"/{bin,lib} "$root/"
    cp -a "$home"/registry/{cache,index} "$root/cargo/registry/"
    # Directories that Debian has may not come a second time.
    (cd "$scratch/root" && find usr -not -type d -print0 | tar --null -T - --owner=0 --group=0 -rf "$scratch/debian.tar")
    variables=("PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true)
    mapfile -t -O "${#variables[@]}" variables < <(env | grep -E '^CARGO_(BUILD_JOBS|PROFILE_)' || true)
    imported "$scratch/debian.tar" rust:drill "${variables[@]}"
    rm -rf "$scratch/root" "$scratch/debian.tar"
    made=(--build-arg RUST=drill --build-arg DEBIAN=drill)
    say 'the images to build from are made here'
fi

# The commands of the Dockerfile's head, with names and a directory of our own.
mkdir "$scratch/builds"
chmod 755 "$scratch" "$scratch/builds"
head=$(sed -n 's/^#   //p' Dockerfile | sed -e "s#/srv/builds:/#$scratch/builds:/#" \
    -e "s/--name gennaker/--name $name/" -e "s/-v gennaker:/-v $name:/" -e "s/ gennaker$/ $name/" -e "s/-t gennaker/-t $name/" \
    -e "s/ gennaker  *#.*/ $name/")
docker() {
    local verb=$1
    shift
    case $verb in
        build) "${engine[@]}" build "${flags[@]}" "${made[@]}" "$@" ;;
        run) "${engine[@]}" run "${limits[@]}" "$@" ;;
        *) "${engine[@]}" "$verb" "$@" ;;
    esac
}
build=$(grep '^docker build' <<<"$head")
start=$(sed -n '/^docker run/,/[^\\]$/p' <<<"$head")
logs=$(grep '^docker logs' <<<"$head")
say "$build"
eval "$build" >"$scratch/build" 2>&1 || { tail -n 60 "$scratch/build" >&2; fail 'the Dockerfile is not built'; }
say "built: $(docker run --rm --network none "$name" --version)"

# Within so many seconds.
until_() {
    local what=$1 end=$((SECONDS + 120))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "$what: not within 120 s"
        sleep 0.3
    done
}
answers() { [ "$(curl -fsS -m 5 http://127.0.0.1:8080/)" = "$1" ]; }
inside() { docker exec -e GENNAKER_TOKEN="$token" "$name" "$@"; }
healthy() {
    [ "$kind" = docker ] || docker healthcheck run "$name"
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$name")" = healthy ]
}

said=$(docker run --rm --network none "$name" 2>&1) && fail 'it listens beyond loopback without being told to'
[[ $said == *insecure* ]] || fail "it does not say why it refuses: $said"
say 'beyond loopback it serves only when told to, and says so'

say "$start"
eval "$start" >"$scratch/start" 2>&1 || fail "$(cat "$scratch/start")"
until_ 'it answers' curl -fsS http://127.0.0.1:7777/healthz
until_ 'it is healthy' healthy
token=$(eval "$logs" 2>&1 | grep -om1 'gnk_[A-Za-z0-9_-]*') || fail 'no token in what it says'
say 'healthy, and the first token shown'
[ "$(inside id -u)" = 10001 ] || fail 'not the user 10001'
[ "$(inside sed -n 's/^CapEff:\t//p' /proc/1/status)" = 0000000000000000 ] || fail 'its first process has rights'
! inside touch /usr/local/bin/x 2>/dev/null || fail 'it may write where the binary lies'
say 'it is a user without rights'

touch "$scratch/builds/hello"
cat >"$scratch/builds/hello.yaml" <<'YAML'
kind: Application
name: hello
---
kind: SecurityGroup
name: hello
inbound: [{ cidr: 0.0.0.0/0, portFrom: 8080, portTo: 8080 }]
---
kind: LoadBalancer
name: hello
listeners: [{ address: 0.0.0.0, port: 8080 }]
healthCheck: { protocol: HTTP, path: /health }
securityGroups: [hello]
---
kind: Pipeline
application: hello
name: deploy
parameters: [{ name: version }]
stages:
  - key: deploy
    kind: deploy
    config:
      clusters:
        - strategy: { kind: redBlack }
          capacity: { min: 2, desired: 2, max: 2 }
          loadBalancers: [hello]
          securityGroups: [hello]
          healthCheck: { protocol: http, path: /health }
          launch:
            artifact: { path: /srv/builds/hello }
            command: [/usr/local/bin/gennaker, sample-app, --version, "${ parameters.version }"]
YAML
inside gennaker apply -f /srv/builds/hello.yaml >/dev/null || fail 'apply'
for version in 1.0.0 2.0.0; do
    inside gennaker run hello/deploy -p version=$version --wait >"$scratch/run.log" 2>&1 || fail "$(cat "$scratch/run.log")"
    answers "hello from $version" || fail "version $version does not answer: $(curl -sS http://127.0.0.1:8080/ 2>&1)"
done
say 'an application is deployed, twice, and answers through the published port'

[ "$(inside sh -c 'cat /proc/[0-9]*/stat 2>/dev/null | grep -c ") Z "')" = 0 ] || fail 'ended processes stay'
docker stop "$name" >/dev/null
[ "$(docker inspect --format '{{.State.ExitCode}}' "$name")" = 0 ] || fail 'SIGTERM does not end it in order'
docker rm "$name" >/dev/null
say 'it ends in order'
eval "$start" >/dev/null
until_ 'another container answers' curl -fsS http://127.0.0.1:7777/healthz
until_ 'its instances are back' answers 'hello from 2.0.0'
! eval "$logs" 2>&1 | grep -q gnk_ || fail 'another token'
inside gennaker status hello | grep -q '2 of 2 healthy' || fail "$(inside gennaker status hello)"
say 'another container with the same volume has data and instances'
docker kill "$name" >/dev/null
docker start "$name" >/dev/null
until_ 'a killed container answers again' curl -fsS http://127.0.0.1:7777/healthz
until_ 'its instances are back' answers 'hello from 2.0.0'
say 'so has one that was killed and started again'
echo 'container: all passed'
