COPY predict.sh /workspace/
RUN mkdir -p @input @output && chmod 777 @output
USER @user

# The platform calls /bin/bash -c "sh predict.sh", so there is no entry point.
FROM base AS exec
CMD ["sh", "predict.sh"]
