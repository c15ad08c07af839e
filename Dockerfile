# docker build -t penchant .
#
# Ray's image, of the version in constraints.txt, with penchant and what the tests passed with. Its user `ray` (1000) is not root.
# CUDA's libraries come with torch; nodes bring the driver.
ARG RAY=2.60.0
FROM rayproject/ray:${RAY}-py311

WORKDIR /home/ray/penchant
COPY --chown=1000:100 . .
RUN pip install --no-cache-dir -c constraints.txt '.[demo,postgres]' && mkdir -p /home/ray/.cache

ENV RAY_USAGE_STATS_ENABLED=0
USER 1000
