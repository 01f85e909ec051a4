# docker build --tag brainmri .                                   for the CPU
# docker build --tag brainmri:cuda --build-arg ACCELERATOR=cuda .  with torch for NVIDIA GPUs
# docker build --tag brainmri:celery --build-arg EXTRAS=export,medical,celery .  for deploy/; or kubernetes
# docker run --rm --volume "$PWD:/project" --user "$(id -u):$(id -g)" brainmri pipeline --dataset brainmri/phantom
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG ACCELERATOR=cpu
ARG EXTRAS=export,medical
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /source
COPY requirements.lock ./
# uv is in the lock, too; pip installs it and checks its hashes.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && pip install --no-cache-dir --require-hashes --requirement uv.lock
COPY . ./
# The lock has torch with CUDA. For the CPU the same version is installed from PyTorch's own index, without hashes.
RUN case "$ACCELERATOR" in \
        cuda) cp requirements.lock pins.txt ;; \
        cpu) sed -E '/^(torch|torchvision)==/,/[^\\]$/{/--hash/d; s/ *\\$//}' requirements.lock > pins.txt ;; \
        *) echo "ACCELERATOR is cpu or cuda, not $ACCELERATOR" >&2; exit 1 ;; \
    esac
RUN python -m venv --without-pip /opt/brainmri \
    && if [ "$ACCELERATOR" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi \
    && install=(uv pip install --no-cache --python /opt/brainmri/bin/python --constraint pins.txt) \
    && "${install[@]}" setuptools \
    && "${install[@]}" --no-build-isolation ".[$EXTRAS]"

FROM python:${PYTHON_VERSION}-slim-bookworm
COPY --from=build /opt/brainmri /opt/brainmri
ENV PATH=/opt/brainmri/bin:$PATH \
    BRAINMRI_HOME=/project \
    DAGSTER_HOME=/project/.dagster
RUN useradd --uid 10001 --create-home brainmri && install --directory --owner brainmri /project
USER 10001
WORKDIR /project
VOLUME /project
ENTRYPOINT ["brainmri"]
CMD ["--help"]
