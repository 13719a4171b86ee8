"""The names of the blocks, and of what lies behind them, that the flows use by default; each name is written here once."""

GCS_BUCKET = "ny-taxi-gcs"
GCP_CREDENTIALS = "de-zoom-key"
POSTGRES = "pg-connector"

# The BigQuery dataset of the trips.
DATASET = "trips_data_all"

# The block's folder in the bucket: everything of the lake lies below it.
LAKE_FOLDER = "data"

# Notification blocks of whatever kind, and the code that agents may clone; made only where the environment tells of them.
NOTIFICATIONS = "ny-taxi-notifications"
MAIL = "ny-taxi-mail"
FLOW_CODE = "flow-code"

# Deployments carry it, and so do their runs: notification policies tell this project's runs from others by it.
TAG = "ny-taxi"
