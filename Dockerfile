# One image for all of a cluster's machines: server, Ray head with its fleet, Ray nodes.
FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 HOME=/home/thalweg

RUN groupadd --gid 1000 thalweg \
 && useradd --uid 1000 --gid thalweg --create-home thalweg \
 && install -d -o thalweg -g thalweg /data \
 && install -d -o thalweg -g thalweg -m 700 /secrets /authority

WORKDIR /thalweg
# Dependencies first: they change seldom, and their layer is kept.
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; \
print('\n'.join(r for r in p['dependencies'] + e['server'] + e['workers'] + e['data'] + e['tls'] if not r.startswith('thalweg')))" \
 > /tmp/requirements.txt \
 && pip install -c constraints.txt -r /tmp/requirements.txt "hatchling>=1.27"
COPY README.md LICENSE ./
COPY proto proto
COPY learning learning
COPY server server
COPY workers workers
COPY client client
RUN pip install --no-deps --no-build-isolation . && rm -rf /thalweg/*

USER thalweg
WORKDIR /home/thalweg
ENTRYPOINT ["thalweg"]
CMD ["--help"]
