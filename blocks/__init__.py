"""The names of the blocks that the flows use by default; each name is written here once."""

GCS_BUCKET = "ny-taxi-gcs"
GCP_CREDENTIALS = "de-zoom-key"
POSTGRES = "pg-connector"

# The block's folder in the bucket: everything of the lake lies below it.
LAKE_FOLDER = "data"
