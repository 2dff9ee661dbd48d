# The book in one command, and the same image for Binder:
#   docker build -t nda . && docker run --name nda nda && docker cp nda:/home/jovyan/_build/html book
FROM python:3.11-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/*

# Binder starts the image as a user with these names.
ARG NB_USER=jovyan
ARG NB_UID=1000
ENV USER=${NB_USER} NB_UID=${NB_UID} HOME=/home/${NB_USER}
RUN adduser --disabled-password --gecos "Default user" --uid ${NB_UID} ${NB_USER}
WORKDIR ${HOME}
COPY --chown=${NB_UID}:${NB_UID} . ${HOME}
RUN chown ${NB_UID}:${NB_UID} ${HOME}
USER ${NB_USER}

# Binder starts `jupyter notebook`, which JupyterLab does not bring; no pin moves for it.
RUN make env && .venv/bin/pip install --no-cache-dir -c requirements.lock notebook
ENV PATH=${HOME}/.venv/bin:${PATH}

CMD ["make", "book"]
