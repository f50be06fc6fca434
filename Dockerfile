# The trainer and the preprocessing with their locked packages; docs/hospital.md says how to build, check and carry it.
# The base is named by its tag: whoever builds may pin it, --build-arg PYTHON=3.11-slim-bookworm@sha256:...
ARG PYTHON=3.11-slim-bookworm
FROM python:${PYTHON}

ARG REVISION=unknown
LABEL org.opencontainers.image.title="cspine" \
      org.opencontainers.image.description="Fracture probabilities of cervical spine CT, and the training of their models. Research only." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# a home that is writable where the root is not, and a name for a user that has only a number
ENV PATH=/opt/cspine/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=cspine \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY requirements.runtime.lock /src/
RUN python3 -m venv /opt/cspine && \
    /opt/cspine/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --require-hashes --requirement /src/requirements.runtime.lock

COPY pyproject.toml README.md LICENSE /src/
COPY cache_schema /src/cache_schema
COPY preprocess /src/preprocess
COPY trainer /src/trainer
COPY configs /src/configs
# setuptools is one of the locked packages: nothing is fetched
RUN /opt/cspine/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --no-index --no-deps --no-build-isolation /src && \
    rm -r /src
COPY container/entry.sh /usr/local/bin/cspine

USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/bin/sh", "/usr/local/bin/cspine"]
CMD ["--help"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=3 CMD ["/bin/sh", "/usr/local/bin/cspine", "healthy"]
