# The server, in two stages: the first makes its virtual environment, the second holds only what runs.
#
# `make image` builds it, and `docker build .` does. Another package index than pip's own is told by pip's settings, and
# an authority of one's own by its file; neither gets into the image:
#     docker build --secret id=pip,src=pip.conf --secret id=ca,src=ca.pem .    (pip.conf: cert = /run/secrets/ca)

# What both stages stand on, and the label says. One of your own, or this one held by its digest:
#     docker build --build-arg BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:… .
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm
FROM $BASE AS build

WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# Everything by its hash, and nothing that would have to be compiled. What only builds stays in ./tools.
# --build-arg LOCK=tracing: with OpenTelemetry.
ARG LOCK=runtime
COPY requirements/build.txt requirements/runtime.txt requirements/tracing.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv tools \
    && python3 -m venv --without-pip /opt/formgate \
    && tools/bin/python -m pip install --require-hashes --only-binary=:all: --requirement requirements/build.txt \
    && tools/bin/python -m pip --python /opt/formgate/bin/python install --require-hashes --only-binary=:all: \
        --requirement "requirements/$LOCK.txt"

COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY service service
RUN tools/bin/python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist ./clients/python . \
    && tools/bin/python -m pip --python /opt/formgate/bin/python install --no-index --no-deps dist/*.whl


FROM $BASE

# The only folder that the embedded default writes to. It is a volume, so that the rest may be read-only.
RUN groupadd --gid 10001 formgate \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/formgate --no-create-home --shell /usr/sbin/nologin formgate \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/formgate

COPY --from=build /opt/formgate /opt/formgate

ENV PATH=/opt/formgate/bin:$PATH \
    HOME=/var/lib/formgate \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FORMGATE_DATA=/var/lib/formgate

WORKDIR /var/lib/formgate
VOLUME /var/lib/formgate
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
USER 10001:10001

# One entry point for the server and for its command: `docker run IMAGE migrate`, `docker run IMAGE check --help`.
ENTRYPOINT ["formgate"]
CMD ["serve"]

# Last, because they differ at every build.
ARG BASE
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="formgate" \
    org.opencontainers.image.description="An authorization service for API keys: who holds this key, what may it do, and how much of it is left." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED" \
    org.opencontainers.image.base.name="$BASE"
