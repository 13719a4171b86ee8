"""The default names of the blocks, and of the dataset, folder and tag that go with them. Each name is written only here."""

GCS_BUCKET = "ny-taxi-gcs"
GCP_CREDENTIALS = "de-zoom-key"
POSTGRES = "pg-connector"

# The BigQuery dataset of the trips.
DATASET = "trips_data_all"

# The block's folder in the bucket. All objects of the lake are in it.
LAKE_FOLDER = "data"

# The notification blocks, of any kind, and the block from which agents clone the code. They are made only if the environment
# sets their variables.
NOTIFICATIONS = "ny-taxi-notifications"
MAIL = "ny-taxi-mail"
FLOW_CODE = "flow-code"

# Every deployment has this tag, and so have its runs. Notification policies select this project's runs by it.
TAG = "ny-taxi"
