USER @user
ENTRYPOINT @entrypoint

# One process for each case: do_build.sh exec
FROM base AS exec
LABEL @label="exec"
CMD ["exec"]

# A server that keeps the model in memory: do_build.sh
FROM base AS invoke
LABEL @label="invoke"
EXPOSE @port
CMD ["invoke"]
