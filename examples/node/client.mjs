// Ask a Modelwright server from Node.js. No code is generated: the protos are read when this starts.
//
//     modelwright serve @assistant
//     npm install
//     node client.mjs --model @assistant

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const QUESTION = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?";

const { values: options } = parseArgs({
  options: {
    server: { type: "string", default: "127.0.0.1:50051" },
    model: { type: "string", default: "@assistant" },
    // Where the folder `modelwright` with the .proto files is.
    protos: { type: "string", default: fileURLToPath(new URL("../../protos", import.meta.url)) },
  },
});

const definition = loader.loadSync(["modelwright/v1/inference.proto", "modelwright/v1/model.proto"], {
  includeDirs: [options.protos],
  keepCase: true, // fields are called what the .proto files call them
  enums: String,
  longs: Number,
  defaults: true, // repeated fields are arrays, plain fields are never absent
  oneofs: true, // event.event says which of start, delta and end an event has
});
const { InferenceService, ModelService } = grpc.loadPackageDefinition(definition).modelwright.v1;

const credentials = grpc.credentials.createInsecure();
const inference = new InferenceService(options.server, credentials);
const models = new ModelService(options.server, credentials);

// A method with one response, as a promise. A deadline keeps a lost server from holding the program for ever.
const ask = (client, method, request) =>
  new Promise((resolve, reject) => {
    const deadline = { deadline: Date.now() + 60_000 };
    client[method](request, deadline, (error, response) => (error ? reject(error) : resolve(response)));
  });

async function main() {
  for (const { name, version, context_length } of (await ask(models, "ListModels", {})).models) {
    console.log(`${name}@${version} has a context of ${context_length} tokens`);
  }

  const request = {
    model: options.model,
    messages: [{ role: "ROLE_USER", content: QUESTION }],
    sampling: { max_tokens: 64 },
  };
  const { served, message, usage, finish_reason } = await ask(inference, "Chat", request);
  console.log(`${served.name}@${served.version} answers: ${message.content}`);
  console.log(`(${usage.completion_tokens} tokens, ended by ${finish_reason})`);

  process.stdout.write("Piece by piece: ");
  // First a start, then deltas, last an end; leaving the loop early would cancel the request on the server.
  for await (const event of inference.ChatStream(request, { deadline: Date.now() + 60_000 })) {
    if (event.event === "delta") process.stdout.write(event.delta.text);
  }
  process.stdout.write("\n");
}

try {
  await main();
} catch (error) {
  if (error.code === undefined) throw error;
  console.error(`error: ${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
} finally {
  inference.close();
  models.close();
}
