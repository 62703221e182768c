# Targets: server (no torch) | trainer | all (both, in two environments). Build with
#   docker build --target server --build-arg ACCELERATOR=cpu .
# requirements/ pins every installed package by hash. Runs as an unprivileged user, also on a read-only root:
#   docker run --read-only --tmpfs /tmp --volume twofold:/store --publish 127.0.0.1:8500:8500 -e TWOFOLD_PLAINTEXT=1 ...

FROM python:3.12.12-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS wheels
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY checkpoint checkpoint
COPY server server
COPY trainer trainer
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . ./clients/python

FROM base AS server-environment
# cpu or gpu: the ONNX Runtime package to install. gpu needs only the driver from its host.
ARG ACCELERATOR=cpu
WORKDIR /src
COPY requirements/server-${ACCELERATOR}.txt requirements/server-${ACCELERATOR}.txt
RUN python -m venv /opt/server && /opt/server/bin/pip install --require-hashes -r requirements/server-${ACCELERATOR}.txt
COPY --from=wheels /wheels /wheels
RUN /opt/server/bin/pip install --no-deps --no-index /wheels/*.whl

FROM base AS trainer-environment
WORKDIR /src
COPY requirements/trainer.txt requirements/trainer.txt
RUN python -m venv /opt/trainer && /opt/trainer/bin/pip install --require-hashes -r requirements/trainer.txt
COPY --from=wheels /wheels /wheels
RUN /opt/trainer/bin/pip install --no-deps --no-index /wheels/twofold_service-*.whl

# Shared by all images: the user, the store, and a home that is writable on a read-only root.
FROM base AS runtime
RUN groupadd --gid 10001 twofold \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin twofold \
    && install --directory --owner=10001 --group=10001 /store
ENV HOME=/tmp TWOFOLD_STORE=/store
VOLUME /store
WORKDIR /store
USER 10001:10001

FROM runtime AS trainer
COPY --from=trainer-environment /opt/trainer /opt/trainer
ENV PATH=/opt/trainer/bin:$PATH
ENTRYPOINT ["twofold-trainer"]
CMD ["--help"]

# Off loopback the server requires TLS or an explicit --plaintext; see docs/security.md.
FROM runtime AS server
COPY --from=server-environment /opt/server /opt/server
ENV PATH=/opt/server/bin:$PATH TWOFOLD_LISTEN=0.0.0.0:8500 TWOFOLD_METRICS_LISTEN=0.0.0.0:9500
EXPOSE 8500 9500
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["twofold", "--timeout", "3", "health"]
ENTRYPOINT ["twofold-server"]
CMD ["serve"]

FROM server AS all
COPY --from=trainer-environment /opt/trainer /opt/trainer
ENV TWOFOLD_TRAINER_PYTHON=/opt/trainer/bin/python
