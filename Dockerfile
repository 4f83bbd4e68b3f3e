# One image for the broker, the workers and a producer: they must agree on the Python minor version.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# A fixed uid, so that the keys (0600) in the shared volume are readable in every container.
RUN useradd --create-home --uid 10001 multihost \
    && install -d -m 0700 -o multihost -g multihost /keys /journal

WORKDIR /opt/multihost
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY broker broker
COPY worker worker
COPY producer producer
RUN pip install --no-cache-dir --root-user-action=ignore .
COPY examples examples

USER multihost
ENV MULTIHOST_KEYS=/keys MULTIHOST_JOURNAL=/journal PYTHONUNBUFFERED=1
EXPOSE 5555
ENTRYPOINT ["multihost"]
CMD ["--help"]
