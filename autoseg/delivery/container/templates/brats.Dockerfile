
# The platform may own /output, so the program runs as root.
FROM base AS exec
ENTRYPOINT @entrypoint
CMD ["exec"]
