// A client in another language, from the .proto files alone: submits a job, watches it and downloads its parameters.
//
//   node client.js ADDRESS PROTO_FOLDER
const crypto = require("node:crypto");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, folder] = process.argv.slice(2);
const definition = loader.loadSync(path.join("thalweg", "v1", "training_service.proto"), {
  includeDirs: [folder],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { TrainingService } = grpc.loadPackageDefinition(definition).thalweg.v1;
const client = new TrainingService(address, grpc.credentials.createInsecure());

const unary = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, (error, response) => (error ? reject(error) : resolve(response))),
  );

const spec = {
  name: "from-node",
  seed: 7,
  model: {
    layers: [{ dense: { units: 16 } }, { relu: {} }, { dense: { units: 10 } }],
    loss: "softmax_cross_entropy",
  },
  data: { builtin: "digits", validation_fraction: 0.2 },
  training: { epochs: 3, workers: 1 },
  optimizer: { adam: { learning_rate: 0.01 } },
};

async function main() {
  const wrong = { ...spec, model: { ...spec.model, loss: "mse" } };
  const refusal = await unary("CreateJob", { spec: wrong }).then(
    () => null,
    (error) => ({ code: error.code, message: error.details }),
  );

  const { job } = await unary("CreateJob", { spec, request_id: crypto.randomUUID() });
  console.error(`created ${job.id}`);
  const sequences = [];
  let state = job.state;
  for await (const { event } of client.WatchJob({ job_id: job.id })) {
    sequences.push(event.sequence);
    if (event.kind === "state_changed") state = event.state_changed.job.state;
  }
  const ended = (await unary("GetJob", { job_id: job.id })).job;

  let header = null;
  const digest = crypto.createHash("sha256");
  let bytes = 0;
  for await (const response of client.DownloadParameters({ job_id: job.id })) {
    if (response.part === "header") header = response.header;
    else {
      digest.update(response.data);
      bytes += response.data.length;
    }
  }
  const tensors = Object.fromEntries(header.layout.tensors.map((tensor) => [tensor.name, tensor.shape]));
  const result = { refusal, job: job.id, state, sequences, bytes, tensors, downloaded_sha256: digest.digest("hex"), result: ended.result };
  console.log(JSON.stringify(result));
}

main().then(
  () => client.close(),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
