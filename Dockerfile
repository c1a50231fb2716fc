# Gennaker in a container: the server and the host in one, as a user without rights.
#
#   docker build -t gennaker .
#   docker run -d --name gennaker -p 127.0.0.1:7777:7777 -p 127.0.0.1:8080:8080 --stop-timeout 60 \
#     -e GENNAKER_INSECURE=true -v gennaker:/var/lib/gennaker -v /srv/builds:/srv/builds:ro gennaker
#   docker logs gennaker            # the first start shows the token of `admin` once
#
# The time to stop is for steps under way (`--shutdown-grace-seconds`). Podman takes the same commands; build
# with `--format docker` there, or the image has no health check.
#
# Instances run in this container and end with it; they come back with the next start. Load balancers
# have to listen on 0.0.0.0 for a published port to reach them. In a container the server has to listen
# beyond loopback: it does so with TLS, or when GENNAKER_INSECURE=true says that the port is published
# to loopback only or that a TLS proxy stands in front; with neither it refuses to start and says why.

# Both images are of one Debian release, so that the binary finds the C library it was built with.
ARG RUST=1.94-slim-bookworm
ARG DEBIAN=bookworm-slim

FROM rust:${RUST} AS build
# The C compiler for SQLite and ring comes with the image's gcc; make sure of it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --locked --profile dist --bin gennaker \
 && install -D target/dist/gennaker /out/gennaker

FROM debian:${DEBIAN}
# curl for the health check; the certificates for calls out.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10001 gennaker \
 && useradd --system --uid 10001 --gid gennaker --home-dir /var/lib/gennaker --shell /usr/sbin/nologin gennaker \
 && install -d -m 0711 -o gennaker -g gennaker /var/lib/gennaker /srv/builds
COPY --from=build /out/gennaker /usr/local/bin/gennaker
COPY LICENSE /usr/share/doc/gennaker/LICENSE

USER gennaker
ENV GENNAKER_LISTEN=0.0.0.0:7777 \
    GENNAKER_DATA_DIR=/var/lib/gennaker \
    GENNAKER_ARTIFACT_ROOTS=/srv/builds
VOLUME /var/lib/gennaker
EXPOSE 7777
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD curl --fail --silent --show-error --insecure --output /dev/null \
        "${GENNAKER_HEALTH_URL:-http://127.0.0.1:7777/healthz}" || exit 1
ENTRYPOINT ["gennaker"]
CMD ["serve"]
